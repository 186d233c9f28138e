"""A sweep as a report reads it: its cells, what they chose, their tested trials.

Reads what `scripts/sweep.py` leaves in a workdir, finished or not. Cells of one model that differ
in the compared factor alone are a group, and one level of it is the group's reference. What they
are tested for is in `stats`.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmjax.core import files
from mmjax.core.errors import InputError
from mmjax.core.names import suggestion
from mmjax.report import runs as report
from mmjax.sweep import space
from mmjax.sweep.ledger import Ledger, Line

SHOWN = ("recall", "ndcg", "hr")  # metrics of the main table and of the tests


class Run(NamedTuple):
    """A tested trial."""

    line: Line  # of the ledger: trial, seed, valid, best_epoch, pack, place, of, timing
    results: dict[str, Any]  # results.json
    users: np.ndarray  # [N]
    values: dict[str, np.ndarray]  # shown metric -> [N] float64, of the test split


class Cell(NamedTuple):
    """A model at one level of each factor."""

    name: str
    model: str
    levels: dict[str, str]
    axes: dict[str, space.Axis]
    group: str  # "vbpr", and the levels of the factors that are not compared
    level: str  # of the compared factor; "" where the model has none
    reference: str  # the name of the group's reference cell; "" where there is none
    point: space.Point | None  # None until it is chosen
    done: list[Line]
    failed: list[Line]
    runs: list[Run]  # by seed; empty until it is tested

    @property
    def content(self) -> bool:
        """Whether its models read features of items."""
        return bool(self.runs) and bool(self.runs[0].results["config"]["features"])

    @property
    def block(self) -> tuple[str, str, float]:
        """What cells must share to be compared: interactions, protocol and threshold."""
        about = self.runs[0].results
        config = about["config"]
        return about["data"]["interaction_hash"], config["protocol"], config["threshold"]


class Study(NamedTuple):
    """A sweep as far as it is done."""

    folder: Path
    sweep: space.Config
    cells: list[Cell]  # group by group, the reference first
    left_out: list[str]  # cells that lacked a store
    planned: int  # trials
    metrics: list[str]  # shown, such as recall@20, ndcg@20, hr@20

    @property
    def tested(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.runs]

    @property
    def runs(self) -> list[Run]:
        return [run for cell in self.cells for run in cell.runs]

    def cell(self, name: str) -> Cell:
        return next(cell for cell in self.cells if cell.name == name)


def read(folder: Path, reference: str = "") -> Study:
    """Reads a sweep's workdir.

    Args:
      reference: the level that others are tested against, as LEVEL or FACTOR=LEVEL; unless given
        "real" where a model has such a level, else the first of its first factor.

    Raises:
      InputError: no sweep is there or a file of it is damaged; nothing is tested yet; no model has
        the reference level.
    """
    folder = Path(folder)
    if not (folder / "sweep.json").exists():
        raise InputError(f"{folder} has no sweep.json; give a folder that scripts/sweep.py filled")
    about = files.read_json(folder / "sweep.json")
    if not isinstance(about, dict) or not {"sweep", "cells"} <= about.keys():
        raise InputError(f"{folder}/sweep.json is not what scripts/sweep.py writes")
    sweep, ledger = about["sweep"], Ledger(folder)
    planned = [cell for cell in space.cells(sweep) if cell.name in about["cells"]]
    of_model = _references(planned, sweep, reference)
    lines = {cell.name: _tested(cell.name, ledger) for cell in planned}
    trials = {line["trial"] for found in lines.values() for line in found}
    results = {trial: _results(folder, trial) for trial in sorted(trials)}
    if not results:
        raise InputError(
            f"nothing of {folder} is tested yet ({len(ledger.done)} trials are trained, "
            f"{len(ledger.failed)} failed); let scripts/sweep.py go on"
        )
    usual = report.chosen(list(results.values()))
    shown = [name for name in usual if name.split("@")[0] in SHOWN]
    cells = []
    for cell in planned:
        runs = [_run(folder, line, results[line["trial"]], shown) for line in lines[cell.name]]
        if any(not np.array_equal(run.users, runs[0].users) for run in runs):
            raise InputError(f"{folder}: the seeds of {cell.name} were tested on other users")
        cells.append(_cell(cell, of_model[cell.model], planned, ledger, runs))
    groups = list(dict.fromkeys(cell.group for cell in cells))
    cells.sort(key=lambda cell: (groups.index(cell.group), cell.name != cell.reference))
    left_out = [cell.name for cell in space.cells(sweep) if cell.name not in about["cells"]]
    trials = sum(_points(cell, sweep) + len(sweep["seeds"]) - 1 for cell in planned)
    return Study(folder, sweep, cells, left_out, trials, shown)


def _references(
    cells: Sequence[space.Cell], sweep: space.Config, wanted: str
) -> dict[str, tuple[str, str]]:
    """The compared factor of each model and its reference level; two "" where there is none."""
    found, known = {}, []
    for model in dict.fromkeys(cell.model for cell in cells):
        factors = sweep["models"][model].get("compare", sweep["compare"])
        every = [(factor, level) for factor, levels in factors.items() for level in levels]
        known += [level for _, level in every]
        if wanted:
            right = [pair for pair in every if wanted in (pair[1], "=".join(pair))]
        else:
            # A factor of datasets has other users at each level: nothing is paired there.
            paired = [p for p in every if "dataset" not in factors[p[0]][p[1]]]
            right = [pair for pair in paired if pair[1] == "real"] or paired
        found[model] = right[0] if right else ("", "")
    if wanted and not any(factor for factor, _ in found.values()):
        raise InputError(
            f"--reference={wanted}: no model is compared at such a level"
            f"{suggestion(wanted, dict.fromkeys(known))}"
        )
    return found


def _tested(name: str, ledger: Ledger) -> list[Line]:
    """The lines of a cell's tested trials, as `done` has them, by seed.

    Two cells whose configs resolve to the same have the same trials, which the ledger notes for
    one of them; they are found by the choice that both made.
    """
    chosen = ledger.chosen.get(name, {}).get("trial")
    twins = {name} | {cell for cell, line in ledger.chosen.items() if line["trial"] == chosen}
    tested = [trial for trial, line in ledger.tested.items() if line["cell"] in twins]
    lines = [ledger.done[trial] for trial in tested if trial in ledger.done]
    return sorted(lines, key=lambda line: line["seed"])


def _results(folder: Path, trial: str) -> dict[str, Any]:
    path = folder / "runs" / trial / "results.json"
    results = files.read_json(path)
    lacking = [key for key in report.KEYS if not isinstance(results, dict) or key not in results]
    if lacking:
        raise InputError(f"{path} has no {lacking[0]!r}; it is not what scripts/sweep.py writes")
    return results


def _run(folder: Path, line: Line, results: dict[str, Any], shown: Sequence[str]) -> Run:
    path = folder / "runs" / line["trial"] / "per_user.npz"
    try:
        with np.load(path) as arrays:
            values = {name: arrays[f"test/{name}"].astype(np.float64) for name in shown}
            return Run(line, results, arrays["test/users"], values)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is missing or damaged ({error})") from None


def _cell(
    cell: space.Cell,
    pair: tuple[str, str],
    planned: Sequence[space.Cell],
    ledger: Ledger,
    runs: list[Run],
) -> Cell:
    factor, level = pair
    others = {key: value for key, value in cell.levels.items() if key != factor}
    at = cell.levels | ({factor: level} if factor else {})
    reference = [c.name for c in planned if c.model == cell.model and c.levels == at and factor]
    done = [line for line in ledger.done.values() if line["cell"] == cell.name]
    failed = [
        line
        for trial, line in ledger.failed.items()
        if line["cell"] == cell.name and trial not in ledger.done  # else it was retried
    ]
    return Cell(
        cell.name,
        cell.model,
        cell.levels,
        cell.axes,
        " ".join([cell.model, *(f"{key}={value}" for key, value in others.items())]),
        cell.levels.get(factor, ""),
        reference[0] if reference else "",
        ledger.chosen.get(cell.name, {}).get("point"),
        done,
        failed,
        runs,
    )


def _points(cell: space.Cell, sweep: space.Config) -> int:
    if not cell.axes:
        return 1
    return len(space.grid(cell)) if cell.search == "grid" else sweep["trials"]


def curve(study: Study, run: Run) -> tuple[list[int], list[float]]:
    """Epochs and the validation metric then, of a tested trial; both empty where none is kept."""
    path = study.folder / "packs" / str(run.line["pack"]) / "metrics.jsonl"
    epochs: list[int] = []
    values: list[float] = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(text)
        except ValueError:  # a kill cut it off
            continue
        value = record.get(f"valid/{run.results['config']['metric']}")
        if run.line["of"] > 1 and "values" in record:
            value = record["values"][run.line["place"]]
        elif run.line["of"] > 1 or value is None:
            continue
        epochs.append(record["epoch"])
        values.append(math.nan if value is None else value)
    return epochs, values
