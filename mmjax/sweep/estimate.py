"""Estimate a sweep's programs, trials, time, memory and disk.

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

STEPS = 9  # timed steps; the first is timed separately, as it includes the start of an epoch


class Estimate(NamedTuple):
    """Costs of one program.

    Its trials differ in traced values only.
    """

    cells: list[str]
    trials: int
    at_once: int
    compile_s: float  # to compile and time training and evaluation, once
    epoch_s: float | None  # of one trial; None where nothing is trained
    eval_s: float  # of one trial
    total_s: float  # of all its trials, at most
    memory: int  # bytes on a device while it runs
    disk: int  # bytes of its checkpoints at a time, and of the weights that are kept


def estimate(plan: Plan, most: int = 0) -> list[Estimate]:
    """Return an estimate of each program of a sweep.

    Nothing is written but derived features.
    """
    packer = Packer(plan.resources, most)
    measured: dict[str, tuple] = {}
    while True:
        try:
            return [
                _of_group(plan, group, packer, measured)
                for group in packer.groups(every_trial(plan))
            ]
        except trial_axis.Unlike:  # the packer now groups the trials differently
            continue


def _of_group(
    plan: Plan, group: Sequence[space.Trial], packer: Packer, measured: dict[str, tuple]
) -> Estimate:
    config = group[0].config
    shared, _ = space.program(config | {"features": ""})
    key = json.dumps([shared, plan.resources.shapes(config), len(group)])
    if key not in measured:
        measured[key] = _measure(plan, group, packer)
    at_once, compile_s, epoch_s, eval_s, memory, state, weights = measured[key]
    evaluations = -(-config["epochs"] // config["eval_every"]) if epoch_s is not None else 1
    trial_s = (epoch_s or 0.0) * config["epochs"] + eval_s * evaluations
    cells = list(dict.fromkeys(trial.cell for trial in group))
    kept_trials = len(cells) * len(plan.sweep["seeds"])
    return Estimate(
        cells,
        len(group),
        at_once,
        compile_s,
        epoch_s,
        eval_s,
        compile_s + trial_s * len(group),
        memory,
        2 * at_once * (state + weights) + kept_trials * weights,
    )


def every_trial(plan: Plan) -> list[space.Trial]:
    """Return all trials that a sweep will train.

    One point of each cell stands for the one that will be chosen.
    """
    tuned, repeated = phases(plan)
    return tuned + repeated


def phases(plan: Plan) -> tuple[list[space.Trial], list[space.Trial]]:
    """Return the trials of every point, and the repeats.

    Repeats have other seeds. One point of each cell stands for the one that will be chosen.
    """
    tuned, repeated, seeds = [], [], plan.sweep["seeds"]
    for cell in plan.cells:
        if cell.search == "grid" or not cell.axes:
            points = space.grid(cell)
        else:
            points = space.drawn(cell, plan.sweep["trials"], plan.sweep["search_seed"])
        hashes = plan.resources.hashes
        tuned += [space.trial(cell, point, seeds[0], hashes) for point in points]
        repeated += [space.trial(cell, points[0], seed, hashes) for seed in seeds[1:]]
    return tuned, repeated


def _measure(plan: Plan, group: Sequence[space.Trial], packer: Packer) -> tuple:
    """Measure one program.

    Returns:
      Trials at once; seconds to compile and measure; seconds of an epoch and of an evaluation for
      one trial; and bytes of the program, of a trial's state and of its weights.
    """
    at_once = min(packer.size(group), len(group))
    trials, data = packer.build(group[:at_once]), packer.data(group[0].config)
    config, shapes = group[0].config, trials.shapes()
    memory = batching.needed(trials) if trials.trainable else batching.nbytes(shapes)
    sizes = (
        batching.nbytes(shapes) // at_once,
        batching.nbytes(early_stopping.weights(shapes)) // at_once,
    )
    # A CPU trains the trials in turn, so that one of them is enough; else all must be timed.
    grid = trials.mesh
    fewest = grid.shape["trial"] if meshes.is_cpu(grid) else len(trials.keys)
    timed, share = trials.take(range(fewest)), min(fewest, at_once)
    begin, epoch_s = time.perf_counter(), None
    if timed.trainable:
        steps = min(STEPS, timed.steps)
        first, all_steps = _seconds(timed, 1), _seconds(timed, steps)
        step = max(0.0, all_steps - first) / max(1, steps - 1)
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
    """Return the seconds of an epoch's first steps, compiled and warm."""
    program: Callable = trials.epoch(steps)
    state, _ = jax.block_until_ready(program(*trials.arguments(trials.init())))
    begin = time.perf_counter()
    jax.block_until_ready(program(*trials.arguments(state)))
    return time.perf_counter() - begin


def table(found: Sequence[Estimate], free: int) -> str:
    """Format the estimates and their sum as a text table.

    Args:
      free: the device's free memory, in bytes.
    """
    head = ("program", "trials", "at once", "s/epoch", "s/evaluation", "at most", "memory", "disk")
    rows = [
        [
            entry.cells[0] + (f" and {len(entry.cells) - 1} more" if len(entry.cells) > 1 else ""),
            str(entry.trials),
            str(entry.at_once),
            "" if entry.epoch_s is None else f"{entry.epoch_s:.3f}",
            f"{entry.eval_s:.3f}",
            duration(entry.total_s),
            f"{entry.memory / 1e6:.0f} MB",
            f"{entry.disk / 1e6:.0f} MB",
        ]
        for entry in found
    ]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in [head, *rows]
    ]
    trials, seconds = sum(entry.trials for entry in found), sum(entry.total_s for entry in found)
    largest, disk = max(entry.memory for entry in found), sum(entry.disk for entry in found)
    return "\n".join(
        [
            *lines,
            f"{len(found)} programs, {trials} trials: at most {duration(seconds)} for one process, "
            f"{largest / 1e6:.0f} MB of the {free / 1e6:.0f} MB of memory that are free, "
            f"{disk / 1e6:.0f} MB of disk",
        ]
    )


def duration(seconds: float) -> str:
    """Format seconds as `42 s`, `7 min` or `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
