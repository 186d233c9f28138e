"""Define what each kind of benchmark compares and measures.

A comparison starts a process for each measurement.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags

from benchmark import encoders, plots, recommenders, scaling, sweeps, tables, timing, vlm
from mmjax.core.errors import InputError
from mmjax.recommenders import registry
from mmjax.training import results

FLAGS = flags.FLAGS
PEERS = ("bprmf", "lightgcn", "vbpr", "freedom")  # what torch_peers.py has in plain torch


class Kind(NamedTuple):
    """Kind of measurement: a comparison and its parts.

    `compare` starts processes; `measure` is what one of them does.
    """

    compare: Callable[[], tuple[list[dict], str]]  # rows, and the table of them
    measure: Callable[[str, str], dict]  # of a side and a name
    settings: tuple[str, ...]  # flags that its numbers depend on
    picture: Callable[[list[dict], Path], None] = plots.of_times


def work(kind: Kind, side: str, name: str) -> dict:
    """Measure one side of a model in this process.

    The process is pinned to `--threads` cores.
    """
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: FLAGS.threads])
    if side in ("torch", "padded"):
        import torch

        torch.set_num_threads(FLAGS.threads)
    row = {"model": name, "side": side, **kind.measure(side, name)}
    row.setdefault("peak_rss_mb", results.peak_rss_mb())
    return row | (timing.limits() if side == "mmjax" else {})


def compare_models(kind: str) -> tuple[list[dict], str]:
    """Measure every model and its torch peer, if it has one.

    The numbers are epoch, evaluation, compile time and memory.
    """
    for name in FLAGS.models:
        registry.find(name)
    torch = FLAGS.torch and has_torch()
    rows = []
    for name in FLAGS.models:
        sides = ["mmjax", "torch"] if torch and name in PEERS else ["mmjax"]
        rows += [spawn(side, name, kind) for side in sides]
    return rows, tables.of_models(rows)


def compare_extract() -> tuple[list[dict], str]:
    """Measure items/s of every encoder and side.

    `apart` is the largest difference of their vectors from ours.
    """
    known = {**encoders.TEXTS, **encoders.IMAGES}
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
            encoders.checkpoint(name, Path(folder))
            sides = ["mmjax", "torch"] + ["padded"] * (name in encoders.TEXTS)
            rows += [spawn(side, name, "extract", f"--folder={folder}") for side in sides]
            for row in rows[-len(sides) :]:
                ours, theirs = (
                    np.load(Path(folder, f"{name}-{side}.npy")) for side in ("mmjax", row["side"])
                )
                row["apart"] = float(np.abs(ours[: len(theirs)] - theirs).max())
    return rows, tables.of_encoders(rows)


def measure_extract(side: str, name: str) -> dict:
    """Measure items/s of one side of one encoder.

    Its unit vectors are left in the folder.
    """
    folder = Path(FLAGS.folder)
    encoder_inputs = encoders.inputs(name, Path(FLAGS.raw), FLAGS.texts, FLAGS.images)
    settings = (
        name,
        encoders.checkpoint(name, folder),
        encoder_inputs,
        FLAGS.encoder_batch,
        FLAGS.repeats,
    )
    if side == "mmjax":
        vectors, row = encoders.of_mmjax(*settings, folder)
    else:
        vectors, row = encoders.of_torch(*settings, side == "padded")
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.save(folder / f"{name}-{side}.npy", vectors)
    return row


def compare_lvlm() -> tuple[list[dict], str]:
    """Measure prefill and decoding of both sides.

    `apart` is the largest difference of their states.
    """
    if not has_torch():
        raise InputError("lvlm needs torch, which makes the checkpoint: pip install torch")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        vlm.checkpoint(FLAGS.shape, root, FLAGS.dtype)
        rows = [
            spawn(side, FLAGS.shape, "lvlm", f"--folder={folder}") for side in ("mmjax", "torch")
        ]
        for task in ("prefill", "mixed"):
            ours, theirs = (np.load(root / f"{task}-{side}.npy") for side in ("mmjax", "torch"))
            rows[1][f"{task}_apart"] = float(np.abs(ours - theirs).max())
    vlm.finish(FLAGS.shape, rows, FLAGS.lvlm_batch, FLAGS.mixed)
    return rows, tables.of_lvlm(FLAGS.shape, rows)


def measure_lvlm(side: str, name: str) -> dict:
    """Measure one side of the vision-language model.

    The last states of its prompts are left in the folder.
    """
    folder = Path(FLAGS.folder)
    paths = {
        "prefill": vlm.pictures(folder, FLAGS.lvlm_batch, mixed=False),
        "mixed": vlm.pictures(folder, FLAGS.mixed, mixed=True),
    }
    settings = (FLAGS.lvlm_batch, FLAGS.repeats, FLAGS.answer, FLAGS.dtype)
    measured = vlm.of_mmjax if side == "mmjax" else vlm.of_torch
    row, states = measured(folder / name, paths, *settings)
    for task, array in states.items():
        np.save(folder / f"{task}-{side}.npy", array)
    return row


def measure_models(parts: list[str], side: str, model: str) -> dict:
    """Measure seconds of compile, epoch and evaluation, and peak memory."""
    shape = FLAGS.users, FLAGS.items, FLAGS.interactions
    data, catalog, task = recommenders.setting(*shape, [int(w) for w in FLAGS.widths], model)
    row = {"train_interactions": len(data.train.user), "evaluated_users": len(task.users)}
    settings = (model, catalog, data, task, FLAGS.batch_size, FLAGS.repeats, parts)
    if side == "mmjax":
        return row | recommenders.of_mmjax(*settings, FLAGS.profile)
    return row | recommenders.of_torch(*settings)


def compare_trials() -> tuple[list[dict], str]:
    """Measure a grid as one program and point by point."""
    rows = [spawn("mmjax", model, "trials") for model in FLAGS.models]
    return rows, tables.of_trials(rows)


def measure_trials(side: str, model: str) -> dict:
    shape = FLAGS.users, FLAGS.items, FLAGS.interactions
    _, catalog, _ = recommenders.setting(*shape, [int(w) for w in FLAGS.widths], model)
    return recommenders.of_trials(model, catalog, FLAGS.batch_size, FLAGS.grid_epochs)


def compare_sweep() -> tuple[list[dict], str]:
    """Measure sweep.py on a grid against train.py for each point."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        shape = FLAGS.users, FLAGS.items, FLAGS.interactions
        sweeps.write_world(Path(folder, "data"), shape, [int(w) for w in FLAGS.widths])
        for model in FLAGS.models:
            begin = time.perf_counter()
            sweep_row = spawn("together", model, "sweep", f"--folder={folder}")
            sweep_row["wall_s"] = time.perf_counter() - begin
            train_row = spawn("apart", model, "sweep", f"--folder={folder}")
            for row in (sweep_row, train_row):
                row["times"] = {"wall_s": [row["wall_s"]]}
                row["apart"] = float(np.abs(np.subtract(row["valid"], train_row["valid"])).max())
            rows += [sweep_row, train_row]
    return rows, tables.of_sweeps(rows)


def measure_sweep(side: str, model: str) -> dict:
    return sweeps.measure(side, model, Path(FLAGS.folder), FLAGS.grid_epochs, FLAGS.devices)


def compare_graph() -> tuple[list[dict], str]:
    """Measure the k-NN graph of --items rows.

    The rows are as wide as the first of --widths.
    """
    row = spawn("mmjax", "neighbours", "graph")
    return [row], tables.of_graph(row)


def measure_graph(side: str, model: str) -> dict:
    return recommenders.of_graph(FLAGS.items, int(FLAGS.widths[0]), FLAGS.top_k, FLAGS.repeats)


def compare_growth() -> tuple[list[dict], str]:
    """Measure an epoch on worlds of growing size.

    A world has ten interactions a user and fifty an item. All take the same number of steps: each
    step updates whole tables, so that at one batch size time would grow as the square of the
    interactions.
    """
    rows = []
    for model in FLAGS.models:
        for count in map(int, FLAGS.counts):
            shape = {"users": count // 10, "items": count // 50, "interactions": count}
            shape["batch_size"] = max(1, FLAGS.batch_size * count // 100_000)
            overrides = [f"--{name}={value}" for name, value in shape.items()]
            # --compare finds a row by its model and side, so each size is a side.
            side = {"side": f"{count} interactions"}
            rows.append(spawn("mmjax", model, "growth", *overrides) | side)
    return rows, tables.of_growth(rows)


def compare_scaling() -> tuple[list[dict], str]:
    """Compile for many devices: what each holds and receives.

    Nothing is run.
    """
    rows = []
    for model in FLAGS.models:
        record = spawn("mmjax", model, "scaling")
        fields = {"model": model, "peak_rss_mb": record["peak_rss_mb"]}
        rows += [fields | {"side": f"{plan['devices']} devices"} | plan for plan in record["plans"]]
    return rows, tables.of_scaling(rows)


def measure_scaling(side: str, model: str) -> dict:
    width = int(FLAGS.widths[0]) if recommenders.config_of(model)["features"] else 0
    catalog = scaling.drawn(FLAGS.users, FLAGS.items, FLAGS.interactions, width)
    counts = map(int, FLAGS.meshes)
    return {"plans": [scaling.plan(model, catalog, FLAGS.batch_size, n) for n in counts]}


def spawn(side: str, model: str, what: str, *more: str) -> dict:
    """Measure one side of one model in a fresh process.

    The process gets the same flags.
    """
    print(f"measuring {model} in {side} ...", file=sys.stderr, flush=True)
    arguments = [
        argument
        for argument in sys.argv[1:]
        if not argument.startswith(("--json", "--models", "--encoders"))
    ]
    arguments = [argument for argument in arguments if argument.startswith("-")]
    command = [
        sys.executable,
        str(Path(__file__).parent),
        what,
        *arguments,
        *more,
        f"--worker={side}:{model}",
    ]
    # XLA and OpenMP size their thread pools when they start. The pinning in `work` then holds for
    # all of their threads.
    environment = os.environ | {"OMP_NUM_THREADS": str(FLAGS.threads)}
    devices = {"together": FLAGS.devices}.get(side, 1)
    devices = max(map(int, FLAGS.meshes)) if what == "scaling" else devices
    if devices > 1:
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if process.returncode:
        raise InputError(
            f"measuring {model} in {side} failed with exit status {process.returncode}"
        )
    return json.loads(process.stdout.splitlines()[-1])


def has_torch() -> bool:
    from importlib.util import find_spec

    if find_spec("torch") is None:
        print("torch is not installed (extra `torch`): no peers are measured", file=sys.stderr)
        return False
    return True


SHAPE = ("users", "items", "interactions", "widths", "batch_size")
KINDS = {
    "models": Kind(
        partial(compare_models, "models"),
        partial(measure_models, ["train", "evaluate"]),
        (*SHAPE, "repeats"),
    ),
    "train": Kind(
        partial(compare_models, "train"), partial(measure_models, ["train"]), (*SHAPE, "repeats")
    ),
    "evaluate": Kind(
        partial(compare_models, "evaluate"),
        partial(measure_models, ["evaluate"]),
        (*SHAPE, "repeats"),
    ),
    "trials": Kind(compare_trials, measure_trials, (*SHAPE, "grid_epochs")),
    "graph": Kind(compare_graph, measure_graph, ("items", "widths", "top_k", "repeats")),
    "growth": Kind(
        compare_growth,
        partial(measure_models, ["train"]),
        ("widths", "batch_size", "repeats"),
        plots.of_growth,
    ),
    "scaling": Kind(compare_scaling, measure_scaling, SHAPE, plots.of_scaling),
    "sweep": Kind(
        compare_sweep,
        measure_sweep,
        ("users", "items", "interactions", "widths", "grid_epochs", "devices"),
    ),
    "extract": Kind(
        compare_extract, measure_extract, ("texts", "images", "encoder_batch", "repeats")
    ),
    "lvlm": Kind(
        compare_lvlm,
        measure_lvlm,
        ("shape", "dtype", "lvlm_batch", "mixed", "answer", "repeats"),
    ),
}
