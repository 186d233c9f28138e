"""Kills an extraction at random moments, goes on, and compares every byte with an undisturbed one.

python scripts/prove_resume.py --out=runs/resume --kills=2 -- \\
    --config=configs/extract/movielens.py --dataset=data/ml

What follows `--` are flags of extract.py but for --out. Exit status 1 if a byte differs.
"""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from _app import arguments, run
from absl import flags

from mmjax.errors import InputError

FLAGS = flags.FLAGS
flags.DEFINE_string("out", None, "Folder for both extractions.", required=True)
flags.DEFINE_integer("kills", 2, "SIGKILLs on the way.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Of the moments.")


def main() -> None:
    out = Path(FLAGS.out)
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; choose another folder")
    begin = time.monotonic()
    if extraction(out / "whole").wait():
        raise InputError("the undisturbed extraction failed; see its message above")
    seconds = time.monotonic() - begin
    chance = random.Random(FLAGS.seed)
    # Each kill falls somewhere in what is then left, so that later ones find work to interrupt.
    kills, left = 0, seconds
    while kills < FLAGS.kills:
        process = extraction(out / "killed")
        try:
            process.wait(timeout=left * chance.uniform(0.2, 0.8))
            break  # it was faster than the undisturbed one
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        kills += 1
        done = len(list((out / "killed").rglob("parts/*.json")))
        stores = [path.parent for path in (out / "killed").rglob("manifest.json")]
        print(f"kill {kills}: {len(stores)} stores begun, {done} chunks of the last on disk")
        left = max(left / 2, 1.0)
    if extraction(out / "killed").wait():
        raise InputError("the extraction that went on failed; see its message above")
    whole, killed = contents(out / "whole"), contents(out / "killed")
    differ = sorted(
        name for name in whole.keys() | killed.keys() if whole.get(name) != killed.get(name)
    )
    print(
        f"{kills} kills, {len(whole)} files, {sum(map(len, whole.values())):,} bytes: "
        + (f"{len(differ)} differ: {', '.join(differ[:5])}" if differ else "all equal")
    )
    sys.exit(bool(differ))


def extraction(out: Path) -> subprocess.Popen:
    script = Path(__file__).parent / "extract.py"
    return subprocess.Popen([sys.executable, str(script), f"--out={out}", *arguments()])


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


if __name__ == "__main__":
    run(main, words=True)
