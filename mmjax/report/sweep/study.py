"""Read a sweep's workdir: cells, their choices, tested trials.

The workdir is what `scripts/sweep.py` leaves, finished or not. Cells of one model that differ only
in the compared factor are a group, and one level of that factor is the group's reference. `stats`
has the tests.
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
    """Tested trial with its results and metrics by user."""

    line: Line  # of the ledger: trial, seed, valid, best_epoch, pack, place, of, timing
    results: dict[str, Any]  # results.json
    users: np.ndarray  # [N]
    values: dict[str, np.ndarray]  # shown metric -> [N] float64, of the test split


class Cell(NamedTuple):
    """Model at one level of each factor, with its trials."""

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
        """Return True if the tested model reads features of items."""
        return bool(self.runs) and bool(self.runs[0].results["config"]["features"])

    @property
    def block(self) -> tuple[str, str, float]:
        """Return what cells must share to be compared.

        That is the hash of the interactions, the protocol and the threshold.
        """
        results = self.runs[0].results
        config = results["config"]
        return results["data"]["interaction_hash"], config["protocol"], config["threshold"]


class Study(NamedTuple):
    """State of a sweep, finished or not."""

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
    """Read a sweep's workdir.

    Args:
      folder: the workdir.
      reference: the level that others are tested against, as LEVEL or FACTOR=LEVEL. By default
        "real" where a model has such a level, else the first level of its first factor; levels that
        change the dataset are then skipped.

    Raises:
      InputError: the folder holds no sweep; a file of it is damaged; nothing is tested yet; no
        model has the reference level; seeds of one cell were tested on different users.
    """
    folder = Path(folder)
    if not (folder / "sweep.json").exists():
        raise InputError(f"{folder} has no sweep.json; give a folder that scripts/sweep.py filled")
    record = files.read_json(folder / "sweep.json")
    if not isinstance(record, dict) or not {"sweep", "cells"} <= record.keys():
        raise InputError(f"{folder}/sweep.json is not what scripts/sweep.py writes")
    sweep, ledger = record["sweep"], Ledger(folder)
    planned = [cell for cell in space.cells(sweep) if cell.name in record["cells"]]
    references = _references(planned, sweep, reference)
    lines = {cell.name: _tested(cell.name, ledger) for cell in planned}
    tested = {line["trial"] for cell_lines in lines.values() for line in cell_lines}
    results = {trial: _results(folder, trial) for trial in sorted(tested)}
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
        cells.append(_cell(cell, references[cell.model], planned, ledger, runs))
    groups = list(dict.fromkeys(cell.group for cell in cells))
    cells.sort(key=lambda cell: (groups.index(cell.group), cell.name != cell.reference))
    left_out = [cell.name for cell in space.cells(sweep) if cell.name not in record["cells"]]
    trials = sum(_points(cell, sweep) + len(sweep["seeds"]) - 1 for cell in planned)
    return Study(folder, sweep, cells, left_out, trials, shown)


def _references(
    cells: Sequence[space.Cell], sweep: space.Config, wanted: str
) -> dict[str, tuple[str, str]]:
    """Return the compared factor and reference level of each model.

    Both are "" for a model without a reference.
    """
    references, known = {}, []
    for model in dict.fromkeys(cell.model for cell in cells):
        factors = sweep["models"][model].get("compare", sweep["compare"])
        pairs = [(factor, level) for factor, levels in factors.items() for level in levels]
        known += [level for _, level in pairs]
        if wanted:
            matching = [pair for pair in pairs if wanted in (pair[1], "=".join(pair))]
        else:
            # Levels that change the dataset have different users, so tests cannot be paired.
            paired = [entry for entry in pairs if "dataset" not in factors[entry[0]][entry[1]]]
            matching = [pair for pair in paired if pair[1] == "real"] or paired
        references[model] = matching[0] if matching else ("", "")
    if wanted and not any(factor for factor, _ in references.values()):
        raise InputError(
            f"--reference={wanted}: no model is compared at such a level"
            f"{suggestion(wanted, dict.fromkeys(known))}"
        )
    return references


def _tested(name: str, ledger: Ledger) -> list[Line]:
    """Return a cell's tested trials as lines of `done`, by seed.

    Cells whose configs resolve to the same config have the same trials, but the ledger notes them
    for one of these cells only. They are found by the choice that all of them made.
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
    other_levels = {key: value for key, value in cell.levels.items() if key != factor}
    reference_levels = cell.levels | ({factor: level} if factor else {})
    reference = [
        c.name for c in planned if c.model == cell.model and c.levels == reference_levels and factor
    ]
    done = [line for line in ledger.done.values() if line["cell"] == cell.name]
    failed = [
        line
        for trial, line in ledger.failed.items()
        if line["cell"] == cell.name and trial not in ledger.done  # else a retry succeeded
    ]
    return Cell(
        cell.name,
        cell.model,
        cell.levels,
        cell.axes,
        " ".join([cell.model, *(f"{key}={value}" for key, value in other_levels.items())]),
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
    """Return epochs and validation metrics of a tested trial.

    Both lists are empty where no metrics are kept.
    """
    path = study.folder / "packs" / str(run.line["pack"]) / "metrics.jsonl"
    epochs: list[int] = []
    values: list[float] = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(text)
        except ValueError:  # cut off by a kill
            continue
        value = record.get(f"valid/{run.results['config']['metric']}")
        if run.line["of"] > 1 and "values" in record:
            value = record["values"][run.line["place"]]
        elif run.line["of"] > 1 or value is None:
            continue
        epochs.append(record["epoch"])
        values.append(math.nan if value is None else value)
    return epochs, values
