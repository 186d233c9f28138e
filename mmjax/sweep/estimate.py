"""What a sweep will take, before it starts: programs, trials, time, memory, disk.

Each program is compiled once and timed for a few steps and one evaluation; programs that differ in
nothing but the content of their features are measured once. Times are upper bounds: every trial
is taken to train to its last epoch.
"""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from mmjax.parallel import mesh as meshes
from mmjax.parallel import trial_axis
from mmjax.sweep import batching, space
from mmjax.sweep.batching import Packer
from mmjax.sweep.plan import Plan
from mmjax.training import early_stopping, ensemble, evaluator, experiment

STEPS = 9  # timed, the first apart: it has what an epoch begins with


class Estimate(NamedTuple):
    """One program: trials that differ in traced values only."""

    cells: list[str]
    trials: int
    at_once: int
    compile_s: float  # of training and evaluation, once
    epoch_s: float | None  # of one trial; None where nothing is trained
    eval_s: float  # of one trial
    total_s: float  # of all its trials, at most
    memory: int  # bytes on a device while it runs
    disk: int  # bytes of its checkpoints at a time, and of the weights that are kept


def estimate(plan: Plan, most: int = 0) -> list[Estimate]:
    """An estimate of each program of a sweep, nothing written but what features are derived."""
    packer, measured = Packer(plan.resources, most), {}
    while True:
        try:
            return [
                _of_group(plan, group, packer, measured)
                for group in packer.groups(every_trial(plan))
            ]
        except trial_axis.Unlike:  # the packer knows it now, and groups them otherwise
            continue


def _of_group(
    plan: Plan, group: Sequence[space.Trial], packer: Packer, measured: dict[str, tuple]
) -> Estimate:
    config = group[0].config
    shared, _ = space.program(config | {"features": ""})
    same = json.dumps([shared, plan.resources.shapes(config), len(group)])
    if same not in measured:
        measured[same] = _measure(plan, group, packer)
    at_once, compile_s, epoch_s, eval_s, memory, state, weights = measured[same]
    evaluations = -(-config["epochs"] // config["eval_every"]) if epoch_s is not None else 1
    each = (epoch_s or 0.0) * config["epochs"] + eval_s * evaluations
    cells = list(dict.fromkeys(trial.cell for trial in group))
    kept = len(cells) * len(plan.sweep["seeds"])
    return Estimate(
        cells,
        len(group),
        at_once,
        compile_s,
        epoch_s,
        eval_s,
        compile_s + each * len(group),
        memory,
        2 * at_once * (state + weights) + kept * weights,
    )


def every_trial(plan: Plan) -> list[space.Trial]:
    """All trials that a sweep will train, as far as what will be chosen does not matter."""
    tuned, repeated = phases(plan)
    return tuned + repeated


def phases(plan: Plan) -> tuple[list[space.Trial], list[space.Trial]]:
    """The trials of every point, and those that repeat, with other seeds, one point of each cell
    in the place of what will be chosen."""
    tuned, repeated, seeds = [], [], plan.sweep["seeds"]
    for cell in plan.cells:
        if cell.search == "grid" or not cell.axes:
            points = space.grid(cell)
        else:
            points = space.drawn(cell, plan.sweep["trials"], plan.sweep["search_seed"])
        own = plan.resources.hashes
        tuned += [space.trial(cell, point, seeds[0], own) for point in points]
        repeated += [space.trial(cell, points[0], seed, own) for seed in seeds[1:]]
    return tuned, repeated


def _measure(plan: Plan, group: Sequence[space.Trial], packer: Packer) -> tuple:
    """Trials at once, compile, epoch and evaluation seconds of one, and bytes."""
    at_once = min(packer.size(group), len(group))
    together, data = packer.build(group[:at_once]), packer.data(group[0].config)
    config, shapes = group[0].config, together.shapes()
    memory = batching.needed(together) if together.trainable else batching.nbytes(shapes)
    sizes = (
        batching.nbytes(shapes) // at_once,
        batching.nbytes(early_stopping.weights(shapes)) // at_once,
    )
    # A CPU trains the trials in turn, so that one of them tells all; else all must be timed.
    grid = together.mesh
    fewest = grid.shape["trial"] if meshes.is_cpu(grid) else len(together.keys)
    timed, share = together.take(range(fewest)), min(fewest, at_once)
    begin, epoch_s = time.perf_counter(), None
    if timed.trainable:
        steps = min(STEPS, timed.steps)
        first, few = _seconds(timed, 1), _seconds(timed, steps)
        step = max(0.0, few - first) / max(1, steps - 1)
        epoch_s = (first + step * (timed.steps - 1)) / share
    timing: dict[str, Any] = {"compile_s": 0.0}
    tasks = experiment.tasks(config, data, ("valid",))
    evaluate = evaluator.Evaluator(timed, tasks, config, data, timing)
    state = timed.init()
    for _ in range(2):
        evaluate(state, "valid", lists=False)
    eval_s = timing["eval_s"][-1] / share
    return at_once, time.perf_counter() - begin, epoch_s, eval_s, memory, *sizes


def _seconds(trials: ensemble.Ensemble, steps: int) -> float:
    """Of the first steps of an epoch, compiled and warm."""
    program: Callable = trials.epoch(steps)
    state, _ = jax.block_until_ready(program(*trials.arguments(trials.init())))
    begin = time.perf_counter()
    jax.block_until_ready(program(*trials.arguments(state)))
    return time.perf_counter() - begin


def table(found: Sequence[Estimate], free: int) -> str:
    """The estimates for people, and their sum; `free` is the device's free memory, in bytes."""
    head = ("program", "trials", "at once", "s/epoch", "s/evaluation", "at most", "memory", "disk")
    rows = [
        [
            one.cells[0] + (f" and {len(one.cells) - 1} more" if len(one.cells) > 1 else ""),
            str(one.trials),
            str(one.at_once),
            "" if one.epoch_s is None else f"{one.epoch_s:.3f}",
            f"{one.eval_s:.3f}",
            duration(one.total_s),
            f"{one.memory / 1e6:.0f} MB",
            f"{one.disk / 1e6:.0f} MB",
        ]
        for one in found
    ]
    widths = [max(len(row[place]) for row in [head, *rows]) for place in range(len(head))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in [head, *rows]
    ]
    trials, seconds = sum(one.trials for one in found), sum(one.total_s for one in found)
    largest, disk = max(one.memory for one in found), sum(one.disk for one in found)
    return "\n".join(
        [
            *lines,
            f"{len(found)} programs, {trials} trials: at most {duration(seconds)} for one process, "
            f"{largest / 1e6:.0f} MB of the {free / 1e6:.0f} MB of memory that are free, "
            f"{disk / 1e6:.0f} MB of disk",
        ]
    )


def duration(seconds: float) -> str:
    """`42 s`, `7 min` or `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
