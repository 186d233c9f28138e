"""Find the remaining work of a sweep.

That is trials to train, choices to make and test splits to read.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmjax.core import files
from mmjax.core.errors import InputError
from mmjax.sweep import search, space
from mmjax.sweep.ledger import Ledger
from mmjax.sweep.resources import Resources
from mmjax.training import settings


class Plan(NamedTuple):
    """Sweep whose cells have their stores."""

    sweep: space.Config
    cells: list[space.Cell]
    resources: Resources
    workdir: Path


class Left(NamedTuple):
    """Remaining work of a sweep."""

    train: list[space.Trial]
    test: list[space.Trial]
    trials: int  # all trials of the sweep
    done: int  # of these


def claim(plan: Plan) -> None:
    """Write sweep.json to claim the workdir for a sweep.

    A changed config is accepted: trials that it shares with the earlier one are not done again.

    Raises:
      InputError: the workdir was begun with other interactions of a dataset.
    """
    path, hashes = plan.workdir / "sweep.json", plan.resources.data_hashes()
    if path.exists():
        for name, digest in files.read_json(path)["data"].items():
            if hashes.get(name, digest) != digest:
                raise InputError(
                    f"{plan.workdir} was begun when {name} held other interactions ({digest}, now "
                    f"{hashes[name]}); give a new --workdir"
                )
    cells = {cell.name: {"model": cell.model, "levels": cell.levels} for cell in plan.cells}
    files.write_json(path, {"sweep": settings.plain(plan.sweep), "cells": cells, "data": hashes})


def survey(plan: Plan, ledger: Ledger, retried: Collection[str] = ()) -> Left:
    """Return the remaining work, and note choices in the ledger.

    A cell's choice is noted once all its points are done.
    """
    to_train, to_test, total, settled = [], [], 0, 0
    seeds = plan.sweep["seeds"]
    for cell in plan.cells:

        def of(point: space.Point, seed: int = seeds[0], cell: space.Cell = cell) -> space.Trial:
            return space.trial(cell, point, seed, plan.resources.hashes)

        points, count = search.points(cell, plan.sweep, plan.workdir, ledger, lambda p: of(p).id)
        trials = {trial.id: trial for trial in map(of, points)}
        undone = [candidate for candidate in trials.values() if _undone(candidate, ledger, retried)]
        total += max(count, len(trials)) + len(seeds) - 1
        settled += len(trials) - len(undone)
        to_train += undone
        if undone or len(points) < count:
            continue

        def repeats(point: space.Point, of: Callable[..., space.Trial] = of) -> list[space.Trial]:
            return [of(point, seed) for seed in seeds]

        best = choose(cell, list(trials.values()), repeats, ledger)
        if best is None:  # every point failed, and so has the cell
            settled += len(seeds) - 1
            continue
        for trial in (of(best.point, seed) for seed in seeds):
            weights = plan.workdir / "weights" / trial.id
            lost = (
                trial.id in ledger.done and trial.id not in ledger.tested and not weights.exists()
            )
            if lost or _undone(trial, ledger, retried):
                to_train.append(trial)
                continue
            settled += trial.seed != seeds[0]
            if trial.id in ledger.done and trial.id not in ledger.tested:
                to_test.append(trial)
    return Left(to_train, to_test, total, settled)


def _undone(trial: space.Trial, ledger: Ledger, retried: Collection[str]) -> bool:
    failed = trial.id in ledger.failed and trial.id not in retried
    return trial.id not in ledger.done and not failed


def choose(
    cell: space.Cell,
    trials: Sequence[space.Trial],
    repeats: Callable[[space.Point], list[space.Trial]],
    ledger: Ledger,
) -> space.Trial | None:
    """Choose the best trial on validation; the ledger keeps it.

    Of equal trials the first is chosen.

    Args:
      repeats: returns the trials of a point over all seeds.

    Returns:
      The chosen trial, or None if none is done.

    Raises:
      InputError: the test split was read for another point already, for this cell or for another
        that names the same trials, so that a choice after it would not be blind.
    """
    finished = [trial for trial in trials if trial.id in ledger.done]
    if not finished:
        return None
    best = max(finished, key=lambda trial: ledger.done[trial.id]["valid"])
    previous = ledger.chosen.get(cell.name)
    if previous is not None and previous["trial"] == best.id:
        return best
    if previous is not None:
        spent = {trial.id for trial in repeats(previous["point"])} & ledger.tested.keys()
        if spent or any(line["cell"] == cell.name for line in ledger.tested.values()):
            raise InputError(
                f"{cell.name}: validation now prefers {best.point}, but the test split was read "
                f"for {previous['point']}; give a new --workdir to choose again"
            )
    choice = {"event": "chosen", "cell": cell.name, "trial": best.id}
    ledger.append([choice | {"point": best.point, "valid": ledger.done[best.id]["valid"]}])
    return best


def event(kind: str, trial: space.Trial) -> dict[str, Any]:
    record = {"event": kind, "trial": trial.id, "cell": trial.cell}
    return record | {"point": trial.point, "seed": trial.seed}
