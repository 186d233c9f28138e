"""What a sweep's cells are compared by: means, intervals over users, paired tests, corrections.

A cell is tested against its group's reference, and one that reads features against the best cell
that reads none, both over the same users.
"""

import math
import statistics
from typing import NamedTuple

import numpy as np

from mmjax.evaluation import critical_difference, significance
from mmjax.report.sweep.study import Cell, Study

ALPHA = 0.05


class Summary(NamedTuple):
    """A metric of a cell on the test split."""

    mean: float
    sd: float  # over seeds; NaN for one
    low: float  # 95 % bootstrap interval over users, each averaged over seeds
    high: float


class Comparison(NamedTuple):
    """A cell tested against another over the same users, each averaged over seeds."""

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
    """A metric of each test user [N], averaged over the cell's seeds."""
    return np.mean([run.values[metric] for run in cell.runs], axis=0)


def seed_means(cell: Cell, metric: str) -> list[float]:
    """The metric of each seed: the mean over users."""
    return [float(run.values[metric].mean()) for run in cell.runs]


def summaries(study: Study) -> dict[tuple[str, str], Summary]:
    """By cell name and shown metric, of every cell that is tested."""
    found = {}
    for cell in study.tested:
        for metric in study.metrics:
            means = seed_means(cell, metric)
            sd = statistics.stdev(means) if len(means) > 1 else math.nan
            of_users = significance.interval(over_seeds(cell, metric))
            found[cell.name, metric] = Summary(of_users.mean, sd, of_users.low, of_users.high)
    return found


def baselines(study: Study) -> dict[tuple[str, str, float], Cell]:
    """By block, the cell without features that is best on validation, where others have some.

    Validation chooses it, because a best of several on the test split would be chosen on test.
    """
    found: dict[tuple[str, str, float], Cell] = {}
    with_content = {cell.block for cell in study.tested if cell.content}
    for cell in study.tested:
        if cell.content or cell.block not in with_content:
            continue
        before = found.get(cell.block)
        if before is None or valid(cell) > valid(before):
            found[cell.block] = cell
    return found


def valid(cell: Cell) -> float:
    """The mean over seeds of what the sweep chose on."""
    return statistics.mean(run.line["valid"] for run in cell.runs)


def compare(study: Study) -> list[Comparison]:
    """Every cell against its reference and, if it reads features, against the best without.

    A pair whose users are not the same is not compared.
    """
    pairs, best = [], baselines(study)
    for cell in study.tested:
        against = {"reference": [c for c in study.tested if c.name == cell.reference]}
        against["baseline"] = [best[cell.block]] if cell.content and cell.block in best else []
        for kind, others in against.items():
            for other in others:
                same = cell.block == other.block and np.array_equal(
                    cell.runs[0].users, other.runs[0].users
                )
                if other.name != cell.name and same:
                    pairs += [(cell, other, kind, metric) for metric in study.metrics]
    if not pairs:
        return []
    tests = []
    for cell, other, _, metric in pairs:
        first, second = over_seeds(cell, metric), over_seeds(other, metric)
        effect = significance.effect(first, second).d_z
        tests.append((significance.paired(first, second), effect))
    adjusted = significance.holm(np.array([test.t for test, _ in tests]))
    return [
        Comparison(cell.name, other.name, kind, metric, test.difference, effect, test.t, float(p))
        for (cell, other, kind, metric), (test, effect), p in zip(
            pairs, tests, adjusted, strict=True
        )
    ]


class Ranks(NamedTuple):
    """Models over several datasets."""

    models: list[str]
    found: critical_difference.CriticalDifference
    blocks: int


def ranks(study: Study) -> Ranks | None:
    """Ranks of the models that all datasets have, by the first metric of their reference cells;
    None unless there are two datasets and two such models.

    A model without a reference is there with its best cell on validation.
    """
    blocks = list(dict.fromkeys(cell.block for cell in study.tested))
    scores: dict[str, list[float]] = {}
    for model in dict.fromkeys(cell.model for cell in study.tested):
        for block in blocks:
            mine = [c for c in study.tested if c.model == model and c.block == block]
            mine = [c for c in mine if c.name == c.reference] or mine
            if mine:
                best = max(mine, key=valid)
                mean = statistics.mean(seed_means(best, study.metrics[0]))
                scores.setdefault(model, []).append(mean)
    scores = {model: values for model, values in scores.items() if len(values) == len(blocks)}
    if len(blocks) < 2 or len(scores) < 2:
        return None
    table = np.array(list(scores.values())).T
    return Ranks(
        list(scores), critical_difference.critical_difference(table, alpha=ALPHA), len(blocks)
    )
