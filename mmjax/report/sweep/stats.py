"""Compare the cells of a sweep: means, intervals, paired tests.

A cell is tested against the reference of its group. A cell that reads features is also tested
against the best cell that reads none. Tests are paired over the same users, intervals are over
users, and the p-values of all comparisons are corrected by Holm.
"""

import math
import statistics
from typing import NamedTuple

import numpy as np

from mmjax.evaluation import critical_difference, significance
from mmjax.report.sweep.study import Cell, Study

ALPHA = 0.05


class Summary(NamedTuple):
    """Test metric of a cell with its deviation and interval."""

    mean: float
    sd: float  # over seeds; NaN for one
    low: float  # 95 % bootstrap interval over users, each averaged over seeds
    high: float


class Comparison(NamedTuple):
    """Paired test of two cells over the same users.

    Each user's value is averaged over seeds.
    """

    cell: str
    against: str
    kind: str  # "reference" or "baseline"
    metric: str
    difference: float  # mean of cell - against
    d_z: float
    p: float  # paired t-test, two-sided
    adjusted: float  # by Holm over all comparisons of the study

    @property
    def significant(self) -> bool:
        return self.adjusted < ALPHA


def over_seeds(cell: Cell, metric: str) -> np.ndarray:
    """Return a metric of each test user [N], averaged over seeds."""
    return np.mean([run.values[metric] for run in cell.runs], axis=0)


def seed_means(cell: Cell, metric: str) -> list[float]:
    """Return the mean over users of a metric for each seed."""
    return [float(run.values[metric].mean()) for run in cell.runs]


def summaries(study: Study) -> dict[tuple[str, str], Summary]:
    """Summarise every shown metric of every tested cell.

    Returns:
      (cell name, metric) -> summary.
    """
    by_cell = {}
    for cell in study.tested:
        for metric in study.metrics:
            means = seed_means(cell, metric)
            sd = statistics.stdev(means) if len(means) > 1 else math.nan
            of_users = significance.interval(over_seeds(cell, metric))
            by_cell[cell.name, metric] = Summary(of_users.mean, sd, of_users.low, of_users.high)
    return by_cell


def baselines(study: Study) -> dict[tuple[str, str, float], Cell]:
    """Return the best cell without features of each block.

    A block has one only where another of its cells reads features. The best is chosen on
    validation: the best of several by the test metric would be chosen on the test split.
    """
    best: dict[tuple[str, str, float], Cell] = {}
    with_content = {cell.block for cell in study.tested if cell.content}
    for cell in study.tested:
        if cell.content or cell.block not in with_content:
            continue
        current = best.get(cell.block)
        if current is None or valid(cell) > valid(current):
            best[cell.block] = cell
    return best


def valid(cell: Cell) -> float:
    """Return the sweep's validation metric, averaged over seeds."""
    return statistics.mean(run.line["valid"] for run in cell.runs)


def compare(study: Study) -> list[Comparison]:
    """Test every cell against its reference and its baseline.

    Only cells that read features have a baseline, the best cell without features. Cells with
    different test users are not compared.
    """
    pairs, best = [], baselines(study)
    for cell in study.tested:
        against = {"reference": [c for c in study.tested if c.name == cell.reference]}
        against["baseline"] = [best[cell.block]] if cell.content and cell.block in best else []
        for kind, rivals in against.items():
            for rival in rivals:
                same = cell.block == rival.block and np.array_equal(
                    cell.runs[0].users, rival.runs[0].users
                )
                if rival.name != cell.name and same:
                    pairs += [(cell, rival, kind, metric) for metric in study.metrics]
    if not pairs:
        return []
    tests = []
    for cell, rival, _, metric in pairs:
        first, second = over_seeds(cell, metric), over_seeds(rival, metric)
        effect = significance.effect(first, second).d_z
        tests.append((significance.paired(first, second), effect))
    adjusted = significance.holm(np.array([test.t for test, _ in tests]))
    return [
        Comparison(cell.name, rival.name, kind, metric, test.difference, effect, test.t, float(p))
        for (cell, rival, kind, metric), (test, effect), p in zip(
            pairs, tests, adjusted, strict=True
        )
    ]


class Ranks(NamedTuple):
    """Ranks of models over several datasets."""

    models: list[str]
    found: critical_difference.CriticalDifference
    blocks: int


def ranks(study: Study) -> Ranks | None:
    """Rank the models that all datasets have.

    The ranks are by the first metric of the models' reference cells. A model without a reference
    cell takes part with its best cell on validation.

    Returns:
      None unless there are at least two datasets and two such models.
    """
    blocks = list(dict.fromkeys(cell.block for cell in study.tested))
    scores: dict[str, list[float]] = {}
    for model in dict.fromkeys(cell.model for cell in study.tested):
        for block in blocks:
            candidates = [c for c in study.tested if c.model == model and c.block == block]
            candidates = [c for c in candidates if c.name == c.reference] or candidates
            if candidates:
                best = max(candidates, key=valid)
                mean = statistics.mean(seed_means(best, study.metrics[0]))
                scores.setdefault(model, []).append(mean)
    scores = {model: values for model, values in scores.items() if len(values) == len(blocks)}
    if len(blocks) < 2 or len(scores) < 2:
        return None
    table = np.array(list(scores.values())).T
    return Ranks(
        list(scores), critical_difference.critical_difference(table, alpha=ALPHA), len(blocks)
    )
