r"""Kill a run at random moments, resume it and check it.

python scripts/chaos.py --out=runs/chaos --kills=20 -- \
    scripts/extract.py --config=configs/extract/movielens.py --dataset=data/ml
python scripts/chaos.py --out=runs/chaos --kills=20 --workers=2 -- \
    scripts/train.py --config=configs/lightgcn.py --config.dataset=data/ml --config.mesh=data=2
python scripts/chaos.py --out=runs/chaos --kills=20 --workers=2 -- \
    scripts/sweep.py --config=configs/sweeps/noise_controls.py:small ...

The killed run is compared with an undisturbed one. What follows `--` is a command of train.py,
extract.py or sweep.py without its --workdir or --out. A third of the kills are SIGTERM, the others
SIGKILL. Several workers are one program under scripts/launch/local.py, or share the folder
(sweep.py); one of them, drawn at random, is killed. Exit status 1 if the outcome differs, something
is there twice, or a torn file is left.
"""

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from _app import arguments, run
from absl import flags

from mmjax.core import files, storage
from mmjax.core.errors import InputError

OUT = flags.DEFINE_string("out", None, "Folder for both runs.", required=True)
KILLS = flags.DEFINE_integer("kills", 20, "At most.", lower_bound=1)
WORKERS = flags.DEFINE_integer("workers", 1, "Processes at once.", 1)
SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")
LEAST = flags.DEFINE_float("least_s", 5.0, "Before a kill, so that something happens.", 0.0)
MOST = flags.DEFINE_float("most_s", 30.0, "Before a kill.", 0.0)

TORN = ("*.partial*", "*.orbax-checkpoint-tmp*")


def main() -> None:
    command, out = arguments(), storage.local(OUT.value)
    script = Path(command[0]).name if command else ""
    if script not in COMPARE:
        raise InputError(f"give a command of {', '.join(COMPARE)} after --, not {script!r}")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; choose another folder")
    begin = time.monotonic()
    finish(start(command, out / "whole"), "the undisturbed run")
    print(f"undisturbed: {time.monotonic() - begin:.0f} s", flush=True)
    kills = disturb(command, out / "killed")
    finish(start(command, out / "killed"), "the run that went on")
    faults = COMPARE[script](out / "whole", out / "killed")
    faults += [f"torn: {path}" for name in TORN for path in (out / "killed").rglob(name)]
    print(f"{kills} kills: " + ("; ".join(faults[:5]) if faults else "all equal, nothing twice"))
    sys.exit(bool(faults))


def disturb(command: list[str], folder: Path) -> int:
    """Start, kill and restart a run until it ends by itself.

    Returns:
      How often it was killed before it had ended.
    """
    chance = random.Random(SEED.value)
    for kill in range(KILLS.value):
        begin = time.monotonic()
        started, wait = start(command, folder), chance.uniform(LEAST.value, MOST.value)
        while time.monotonic() - begin < wait and alive(started):
            time.sleep(0.02)
        targets = workers(started)
        if not targets or complete(folder):  # a kill would find nothing to disturb
            if any(process.wait() for process in started):
                raise InputError(f"a run that went on failed by itself; see {folder}.log")
            return kill
        number = chance.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
        victim = chance.choice(targets)
        try:
            victim.send_signal(number)
            print(f"kill {kill + 1}: {number.name} after {wait:.1f} s, {state(folder)}", flush=True)
        except psutil.NoSuchProcess:
            return kill
        if len(started) > 1:  # the others share the folder and would finish the work
            for process in started:
                process.kill()
        for process in started:
            process.wait()
    return KILLS.value


def start(command: list[str], folder: Path) -> list[subprocess.Popen]:
    flag = "--out" if Path(command[0]).name == "extract.py" else "--workdir"
    line = [sys.executable, *command, f"{flag}={folder}"]
    count = 1
    if Path(command[0]).name != "sweep.py" and WORKERS.value > 1:
        local = str(Path(__file__).parent / "launch" / "local.py")
        line = [line[0], local, f"--processes={WORKERS.value}", "--", *line[1:]]
    elif Path(command[0]).name == "sweep.py":
        count = WORKERS.value
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.log", "a") as log:
        streams = {"stdout": log, "stderr": subprocess.STDOUT}
        return [subprocess.Popen(line, **streams) for _ in range(count)]


def alive(started: list[subprocess.Popen]) -> bool:
    return any(process.poll() is None for process in started)


def workers(started: list[subprocess.Popen]) -> list[psutil.Process]:
    """Return the processes that do the work.

    They are a launcher's children, or the started processes themselves.
    """
    processes = []
    for process in started:
        if process.poll() is None:
            parent = psutil.Process(process.pid)
            processes += (
                parent.children() if "local.py" in " ".join(parent.cmdline()) else []
            ) or [parent]
    return processes


def finish(started: list[subprocess.Popen], what: str) -> None:
    statuses = [process.wait() for process in started]
    if any(statuses):
        raise InputError(f"{what} failed; see the log beside its folder")


def complete(folder: Path) -> bool:
    """Return True if the run has written its last file.

    The run is a training or an extraction.
    """
    stores = [files.read_json(path) for path in folder.rglob("manifest.json")]
    done = bool(stores) and all(manifest["complete"] for manifest in stores)
    return done or (folder / "results.json").exists()


def state(folder: Path) -> str:
    """Describe how far a killed run is, in a few words."""
    counts = {
        "epochs": len(lines(folder / "metrics.jsonl")),
        "events": len(lines(folder / "ledger.jsonl")),
        "chunks": len(list(folder.rglob("parts/*.json"))),
    }
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "nothing"


def lines(path: Path) -> list[dict[str, Any]]:
    """Read the complete lines of a JSON lines file."""
    if not path.exists():
        return []
    complete_lines = [
        line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")
    ]
    return [json.loads(line) for line in complete_lines]


def compare_training(whole: Path, killed: Path) -> list[str]:
    ours, theirs = (files.read_json(folder / "results.json") for folder in (killed, whole))
    keys = ("valid", "test", "epochs", "best_epoch")
    faults = [f"{key} differs" for key in keys if ours[key] != theirs[key]]
    with np.load(whole / "per_user.npz") as expected, np.load(killed / "per_user.npz") as arrays:
        faults += [
            f"{name} differs"
            for name in expected
            if not np.array_equal(expected[name], arrays[name])
        ]
    epochs = [line["epoch"] for line in lines(killed / "metrics.jsonl")]
    return faults + ["epochs missing or twice"] * (epochs != list(range(1, ours["epochs"] + 1)))


def compare_extraction(whole: Path, killed: Path) -> list[str]:
    expected, actual = (
        {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        for folder in (whole, killed)
    )
    names = sorted(expected.keys() | actual.keys())
    return [f"{name} differs" for name in names if expected.get(name) != actual.get(name)]


def compare_sweep(whole: Path, killed: Path) -> list[str]:
    def told(folder: Path) -> tuple[Counter, dict[str, Any]]:
        events = lines(folder / "ledger.jsonl")
        keys = [f"{e['event']} {e.get('trial') or e['cell']}" for e in events]
        values = {key: e.get("valid") for key, e in zip(keys, events, strict=True)}
        return Counter(keys), values

    (_, expected), (counts, actual) = told(whole), told(killed)
    faults = [f"{key} is there {count} times" for key, count in counts.items() if count > 1]
    faults += [f"{key} is missing" for key in expected.keys() - actual.keys()]
    return faults + [f"{key} differs" for key in expected if actual.get(key) != expected[key]]


COMPARE = {
    "train.py": compare_training,
    "extract.py": compare_extraction,
    "sweep.py": compare_sweep,
}

if __name__ == "__main__":
    run(main, words=True)
