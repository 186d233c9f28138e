"""Measure mmjax and plain PyTorch side by side in one call.

python scripts/benchmark models --models=bprmf,lightgcn,vbpr --threads=1 --json=FILE
python scripts/benchmark train … ; python scripts/benchmark evaluate …     # halves of models
python scripts/benchmark sweep --models=lightgcn,vbpr --threads=2 --grid_epochs=20 --json=FILE
python scripts/benchmark growth --models=lightgcn --counts=100000,1000000 --json=FILE
python scripts/benchmark scaling --models=lightgcn --users=10000000 --items=2000000 …
python scripts/benchmark extract --raw=movielens100k-posters --threads=1 --json=FILE
python scripts/benchmark lvlm --shape=100m --threads=2 --json=FILE
python scripts/benchmark --compare OLD.json NEW.json

Every measurement runs in a process of its own, pinned to the same cores, one after the other:
compile time separately, a warm-up, then each of `--repeats`. The data of `models` is a world of the
shape on which MMRec was timed, with random features of its widths. `extract` reads real plots and
posters. `lvlm` reads and answers under a prompt of the papers, with random weights. `sweep` starts
the scripts themselves, once for ten points and ten times for one. `scaling` compiles for virtual
devices and runs nothing.
"""

import json
import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # of scripts/

from _app import arguments, run

from benchmark import timing, vlm
from benchmark.kinds import KINDS, work
from mmjax import __version__
from mmjax.core import files
from mmjax.core.errors import InputError
from mmjax.training import metric_logger

FLAGS = flags.FLAGS
flags.DEFINE_list("models", ["bprmf", "lightgcn", "vbpr"], "recommenders to measure")
flags.DEFINE_integer("threads", 1, "cores to pin to", lower_bound=1)
flags.DEFINE_integer("repeats", 5, "epochs and evaluations measured", lower_bound=1)
flags.DEFINE_string("json", "", "also write the numbers to this file, and a .png beside it")
flags.DEFINE_string("compare", "", "OLD.json, before NEW.json: what changed, beyond the noise")
flags.DEFINE_string("profile", "", "models, train: folder for a trace of one epoch, for xprof")
flags.DEFINE_bool("torch", True, "measure the plain PyTorch peers too")
flags.DEFINE_integer("users", 19_445, "of the world")
flags.DEFINE_integer("items", 7_050, "of the world")
flags.DEFINE_integer("interactions", 175_000, "of the world; the default puts 128,000 in train")
flags.DEFINE_list("widths", ["4096", "384"], "of the random features, a modality each")
flags.DEFINE_integer("top_k", 10, "graph: neighbours of each row")
flags.DEFINE_integer("grid_epochs", 5, "trials, sweep: epochs of each point")
flags.DEFINE_integer("devices", 1, "sweep: CPU devices over which its trials are split", 1)
flags.DEFINE_list("meshes", ["1", "8", "64", "256"], "scaling: numbers of virtual devices")
flags.DEFINE_list("counts", ["100000", "1000000", "10000000"], "growth: interactions of the worlds")
flags.DEFINE_integer("batch_size", 2048, "interactions a step; growth: of 100,000")
flags.DEFINE_list("encoders", ["minilm", "mpnet", "resnet50", "vit", "clip"], "to measure")
flags.DEFINE_string("raw", "", "extract: folder with items.csv and posters/")
flags.DEFINE_integer("texts", 2000, "extract: overviews", lower_bound=1)
flags.DEFINE_integer("images", 500, "extract: posters", lower_bound=1)
flags.DEFINE_integer("encoder_batch", 32, "extract: inputs a batch", lower_bound=1)
flags.DEFINE_enum("shape", "100m", list(vlm.SHAPES), "lvlm: of the Qwen2-VL")
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "lvlm: of both sides")
flags.DEFINE_integer("lvlm_batch", 16, "lvlm: prompts a batch, answers side by side", lower_bound=1)
flags.DEFINE_integer("mixed", 64, "lvlm: prompts with images of many shapes", lower_bound=1)
flags.DEFINE_integer("answer", 128, "lvlm: tokens of every answer", lower_bound=1)
flags.DEFINE_string("worker", "", "internal: SIDE:MODEL to measure in this process")
flags.DEFINE_string("folder", "", "internal: where the encoders' checkpoints and vectors are")


def main() -> None:
    words = arguments()
    if FLAGS.compare:
        compare([FLAGS.compare, *words])
    if len(words) != 1 or words[0] not in KINDS:
        raise InputError(f"say what to measure: benchmark {', '.join(KINDS)}")
    (name,) = words
    if FLAGS.worker:
        print(json.dumps(work(KINDS[name], *FLAGS.worker.split(":"))))
        return
    rows, table = KINDS[name].compare()
    print(table)
    if FLAGS.json:
        keep(name, rows)


def compare(paths: list[str]) -> None:
    """Print what changed between two files, and exit.

    The exit status is 1 if anything became slower.
    """
    if len(paths) != 2:
        raise InputError("give two files: benchmark --compare OLD.json NEW.json")
    for path in paths:
        if not Path(path).is_file():
            raise InputError(f"{path} is missing; benchmark KIND --json={path} writes it")
    table, slower = timing.compare(*map(files.read_json, paths))
    print(table)
    sys.exit(int(slower))


def keep(kind: str, rows: list[dict]) -> None:
    """Write the numbers and their settings to --json.

    A picture is written beside it.
    """
    header = {
        "cpu": cpu_name(),
        "threads": FLAGS.threads,
        "versions": metric_logger.versions("jax", "jaxlib", "numpy") | {"mmjax": __version__},
        "settings": {"kind": kind} | {name: FLAGS[name].value for name in KINDS[kind].settings},
    }
    files.write_json(FLAGS.json, header | {"rows": rows})
    picture = Path(FLAGS.json).with_suffix(".png")
    KINDS[kind].picture(rows, picture)
    print(f"wrote {FLAGS.json}" + f", {picture}" * picture.exists())


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return "unknown"


if __name__ == "__main__":
    run(main, words=True)
