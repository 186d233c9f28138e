"""Measures side by side with plain PyTorch in the same call: training and evaluation, extraction.

python scripts/benchmark.py models --models=bprmf,lightgcn,vbpr --threads=1 --json=FILE
python scripts/benchmark.py extract --raw=movielens100k-posters --threads=1 --json=FILE
python scripts/benchmark.py lvlm --shape=100m --threads=2 --json=FILE
python scripts/benchmark.py sweep --models=lightgcn,vbpr --threads=2 --grid_epochs=20 --json=FILE

Every measurement runs in a process of its own, pinned to the same cores, one after the other:
compile time apart, a warm-up, then the median of `--repeats`. The data of `models` is a world of
the shape on which MMRec was timed, with random features of its widths; that of `extract` are real
plots and posters; `lvlm` reads and answers under a prompt of the papers, with random weights;
`sweep` starts the scripts themselves, once for ten points and ten times for one.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _encoding
import _lvlm
import _recommenders
import _sweeping
import _tables
import numpy as np
from _app import arguments, run
from absl import flags

from mmjax import __version__, files, journal, train
from mmjax.errors import InputError
from mmjax.recommenders import core

FLAGS = flags.FLAGS
flags.DEFINE_list("models", ["bprmf", "lightgcn", "vbpr"], "recommenders to measure")
flags.DEFINE_integer("threads", 1, "cores to pin to", lower_bound=1)
flags.DEFINE_integer("repeats", 5, "epochs and evaluations measured", lower_bound=1)
flags.DEFINE_string("json", "", "also write the numbers to this file")
flags.DEFINE_bool("torch", True, "measure the plain PyTorch peers too")
flags.DEFINE_integer("users", 19_445, "of the world")
flags.DEFINE_integer("items", 7_050, "of the world")
flags.DEFINE_integer("interactions", 175_000, "of the world; the default puts 128,000 in train")
flags.DEFINE_list("widths", ["4096", "384"], "of the random features, a modality each")
flags.DEFINE_integer("top_k", 10, "graph: neighbours of each row")
flags.DEFINE_integer("grid_epochs", 5, "trials, sweep: epochs of each point")
flags.DEFINE_integer("devices", 1, "sweep: CPU devices over which its trials are split", 1)
flags.DEFINE_integer("batch_size", 2048, "interactions a step")
flags.DEFINE_list("encoders", ["minilm", "mpnet", "resnet50", "vit", "clip"], "to measure")
flags.DEFINE_string("raw", "", "extract: folder with items.csv and posters/")
flags.DEFINE_integer("texts", 2000, "extract: overviews", lower_bound=1)
flags.DEFINE_integer("images", 500, "extract: posters", lower_bound=1)
flags.DEFINE_integer("encoder_batch", 32, "extract: inputs a batch", lower_bound=1)
flags.DEFINE_enum("shape", "100m", list(_lvlm.SHAPES), "lvlm: of the Qwen2-VL")
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "lvlm: of both sides")
flags.DEFINE_integer("lvlm_batch", 16, "lvlm: prompts a batch, answers side by side", lower_bound=1)
flags.DEFINE_integer("mixed", 64, "lvlm: prompts with images of many shapes", lower_bound=1)
flags.DEFINE_integer("answer", 128, "lvlm: tokens of every answer", lower_bound=1)
flags.DEFINE_string("worker", "", "internal: SIDE:MODEL to measure in this process")
flags.DEFINE_string("folder", "", "internal: where the encoders' checkpoints and vectors are")

PEERS = ("bprmf", "lightgcn", "vbpr", "freedom")  # what _peers.py has in plain torch


def main() -> None:
    what = arguments()
    kinds = {
        "models": (compare_models, measure),
        "trials": (compare_trials, measure_trials),
        "graph": (compare_graph, measure_graph),
        "sweep": (compare_sweep, measure_sweep),
        "extract": (compare_encoders, measure_encoder),
        "lvlm": (compare_lvlm, measure_lvlm),
    }
    if len(what) != 1 or what[0] not in kinds:
        raise InputError(f"say what to measure: benchmark.py {', '.join(kinds)}")
    compare, worker = kinds[what[0]]
    if FLAGS.worker:
        print(json.dumps(worker(*FLAGS.worker.split(":"))))
        return
    compare()


def compare_models() -> None:
    """Epoch, evaluation, compile time and memory of every model and its peer, if it has one."""
    for name in FLAGS.models:
        core.find(name)
    torch = FLAGS.torch and has_torch()
    rows = []
    for name in FLAGS.models:
        sides = ["mmjax", "torch"] if torch and name in PEERS else ["mmjax"]
        rows += [spawn(side, name) for side in sides]
    print(_tables.of_models(rows))
    keep(rows, "users", "items", "interactions", "widths", "batch_size", "repeats")


def compare_encoders() -> None:
    """Items/s of every encoder and side, and how far their vectors are apart."""
    known = {**_encoding.TEXTS, **_encoding.IMAGES}
    unknown = [name for name in FLAGS.encoders if name not in known]
    if unknown:
        raise InputError(f"no benchmark of {unknown[0]!r}; there are {', '.join(known)}")
    if not FLAGS.raw or not Path(FLAGS.raw, "items.csv").exists():
        raise InputError("extract needs --raw, a folder with items.csv and posters/")
    if not has_torch():
        raise InputError("extract needs torch, which makes the checkpoints: pip install torch")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in FLAGS.encoders:
            _encoding.checkpoint(name, Path(folder))
            sides = ["mmjax", "torch"] + ["padded"] * (name in _encoding.TEXTS)
            rows += [spawn(side, name, "extract", f"--folder={folder}") for side in sides]
            for row in rows[-len(sides) :]:
                ours, theirs = (
                    np.load(Path(folder, f"{name}-{side}.npy")) for side in ("mmjax", row["side"])
                )
                row["apart"] = float(np.abs(ours[: len(theirs)] - theirs).max())
    print(_tables.of_encoders(rows))
    keep(rows, "texts", "images", "encoder_batch", "repeats")


def measure_encoder(side: str, name: str) -> dict:
    """Items/s of one side of one encoder; its unit vectors are left in the folder."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: FLAGS.threads])
    folder = Path(FLAGS.folder)
    given = _encoding.inputs(name, Path(FLAGS.raw), FLAGS.texts, FLAGS.images)
    settings = (name, _encoding.checkpoint(name, folder), given, FLAGS.encoder_batch, FLAGS.repeats)
    if side == "mmjax":
        vectors, row = _encoding.of_mmjax(*settings, folder)
    else:
        import torch

        torch.set_num_threads(FLAGS.threads)
        vectors, row = _encoding.of_torch(*settings, side == "padded")
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.save(folder / f"{name}-{side}.npy", vectors)
    return {"model": name, "side": side, **row, "peak_rss_mb": train.peak_rss_mb()}


def compare_lvlm() -> None:
    """Reading and answering of both sides, and how far their states are apart."""
    if not has_torch():
        raise InputError("lvlm needs torch, which makes the checkpoint: pip install torch")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        _lvlm.checkpoint(FLAGS.shape, place, FLAGS.dtype)
        rows = [
            spawn(side, FLAGS.shape, "lvlm", f"--folder={folder}") for side in ("mmjax", "torch")
        ]
        for task in ("prefill", "mixed"):
            ours, theirs = (np.load(place / f"{task}-{side}.npy") for side in ("mmjax", "torch"))
            rows[1][f"{task}_apart"] = float(np.abs(ours - theirs).max())
    _lvlm.finish(FLAGS.shape, rows, FLAGS.lvlm_batch, FLAGS.mixed)
    print(_tables.of_lvlm(FLAGS.shape, rows))
    keep(rows, "shape", "dtype", "lvlm_batch", "mixed", "answer", "repeats")


def measure_lvlm(side: str, name: str) -> dict:
    """One side; the last states of its prompts are left in the folder."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: FLAGS.threads])
    place = Path(FLAGS.folder)
    paths = {
        "prefill": _lvlm.pictures(place, FLAGS.lvlm_batch, mixed=False),
        "mixed": _lvlm.pictures(place, FLAGS.mixed, mixed=True),
    }
    settings = (FLAGS.lvlm_batch, FLAGS.repeats, FLAGS.answer, FLAGS.dtype)
    if side == "torch":
        import torch

        torch.set_num_threads(FLAGS.threads)
    measured = _lvlm.of_mmjax if side == "mmjax" else _lvlm.of_torch
    row, states = measured(place / name, paths, *settings)
    for task, found in states.items():
        np.save(place / f"{task}-{side}.npy", found)
    return {"model": name, "side": side, **row, "peak_rss_mb": train.peak_rss_mb()}


def keep(rows: list[dict], *settings: str) -> None:
    """Writes the numbers and how they were made to --json, if that is given."""
    if FLAGS.json:
        about = {
            "cpu": cpu_name(),
            "threads": FLAGS.threads,
            "versions": journal.versions("jax", "jaxlib", "numpy") | {"mmjax": __version__},
            "settings": {name: FLAGS[name].value for name in settings},
        }
        files.write_json(FLAGS.json, about | {"rows": rows})
        print(f"wrote {FLAGS.json}")


def spawn(side: str, model: str, what: str = "models", *more: str) -> dict:
    """Measures one side of one model in a fresh process with the same flags."""
    print(f"measuring {model} in {side} ...", file=sys.stderr, flush=True)
    own = [a for a in sys.argv[1:] if not a.startswith(("--json", "--models", "--encoders"))]
    own = [a for a in own if a.startswith("-")]
    command = [sys.executable, __file__, what, *own, *more, f"--worker={side}:{model}"]
    # XLA and OpenMP size their pools when they start; the pinning in `measure` then holds for all.
    environment = os.environ | {"OMP_NUM_THREADS": str(FLAGS.threads)}
    if side == "together" and FLAGS.devices > 1:
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={FLAGS.devices}"
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise InputError(f"measuring {model} in {side} failed with exit status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(side: str, model: str) -> dict:
    """Seconds of compile, epoch and evaluation, and peak memory, in this process."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: FLAGS.threads])
    if side == "torch":
        import torch

        torch.set_num_threads(FLAGS.threads)
    shape = FLAGS.users, FLAGS.items, FLAGS.interactions
    data, catalog, task = _recommenders.setting(*shape, [int(w) for w in FLAGS.widths], model)
    row = {"model": model, "side": side, "train_interactions": len(data.train.user)}
    row["evaluated_users"] = len(task.users)
    measured = _recommenders.of_mmjax if side == "mmjax" else _recommenders.of_torch
    return row | measured(model, catalog, data, task, FLAGS.batch_size, FLAGS.repeats)


def compare_trials() -> None:
    """A grid as one program against the same points one by one."""
    rows = [spawn("mmjax", model, "trials") for model in FLAGS.models]
    print(_tables.of_trials(rows))
    keep(rows, "users", "items", "interactions", "widths", "batch_size", "grid_epochs")


def measure_trials(side: str, model: str) -> dict:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: FLAGS.threads])
    shape = FLAGS.users, FLAGS.items, FLAGS.interactions
    _, catalog, _ = _recommenders.setting(*shape, [int(w) for w in FLAGS.widths], model)
    row = _recommenders.of_trials(model, catalog, FLAGS.batch_size, FLAGS.grid_epochs)
    return {"model": model, "side": side, **row}


def compare_sweep() -> None:
    """A grid by sweep.py against train.py for each of its points."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        shape = FLAGS.users, FLAGS.items, FLAGS.interactions
        _sweeping.write_world(Path(folder, "data"), shape, [int(w) for w in FLAGS.widths])
        for model in FLAGS.models:
            begin = time.perf_counter()
            together = spawn("together", model, "sweep", f"--folder={folder}")
            together["wall_s"] = time.perf_counter() - begin
            apart = spawn("apart", model, "sweep", f"--folder={folder}")
            for row in (together, apart):
                row["apart"] = float(np.abs(np.subtract(row["valid"], apart["valid"])).max())
            rows += [together, apart]
    print(_tables.of_sweeps(rows))
    keep(rows, "users", "items", "interactions", "widths", "grid_epochs", "devices")


def measure_sweep(side: str, model: str) -> dict:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: FLAGS.threads])
    found = _sweeping.measure(side, model, Path(FLAGS.folder), FLAGS.grid_epochs, FLAGS.devices)
    return {"model": model, "side": side, **found}


def compare_graph() -> None:
    """The k-NN graph of --items rows, the first of --widths wide."""
    row = spawn("mmjax", "neighbours", "graph")
    print(_tables.of_graph(row))
    keep([row], "items", "widths", "top_k", "repeats")


def measure_graph(side: str, model: str) -> dict:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: FLAGS.threads])
    row = _recommenders.of_graph(FLAGS.items, int(FLAGS.widths[0]), FLAGS.top_k, FLAGS.repeats)
    return {"model": model, "side": side, **row}


def has_torch() -> bool:
    from importlib.util import find_spec

    if find_spec("torch") is None:
        print("torch is not installed (extra `torch`): no peers are measured", file=sys.stderr)
        return False
    return True


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return "unknown"


if __name__ == "__main__":
    run(main, words=True)
