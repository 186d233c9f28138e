"""Compare many methods over many data sets by average ranks.

The ranks and the tests of which methods differ follow Demšar, JMLR 2006. Scores are of N blocks,
data sets or splits that are independent of one another, by K methods. Comparisons of two methods
over the users of one data set are in `significance`.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats


class CriticalDifference(NamedTuple):
    """Ranks and groups of a critical-difference diagram, and its tests.

    The tests over all methods say if such a diagram may be drawn.
    """

    ranks: np.ndarray  # [K] average rank of each method, 1 the best
    friedman: float  # chi-squared, K - 1 degrees of freedom
    friedman_p: float
    iman_davenport: float  # F, K - 1 and (K - 1)(N - 1) degrees of freedom
    iman_davenport_p: float
    distance: float  # Nemenyi's critical difference of two average ranks
    groups: tuple[tuple[int, ...], ...]  # two or more methods each, best first, joined by a bar


def critical_difference(scores: np.ndarray, *, alpha: float = 0.05) -> CriticalDifference:
    """Compare K methods by their ranks within each block.

    Equal scores share their mean rank. Friedman's chi-squared is corrected for such ties (Conover,
    Practical Nonparametric Statistics, 1999, section 5.8); without any it is Demšar's, section
    3.2.2, which leaves them uncorrected. F is Iman and Davenport's less conservative form of it:
    infinite where all blocks agree. Where all scores tie, both are 0 with p = 1. Two methods
    differ if their average ranks are at least `distance` apart, q sqrt(K (K + 1) / 6N), with q the
    Studentized range's quantile at infinite degrees of freedom over sqrt(2). `groups` are the
    longest runs of methods that do not differ; a method in none differs from all. Groups mean
    little where the tests over all methods do not reject.

    Args:
      scores: [N, K], higher is better.

    Raises:
      ValueError: scores that are not a finite matrix of at least two blocks and two methods; an
        alpha outside (0, 1).
    """
    if scores.ndim != 2 or min(scores.shape) < 2:
        raise ValueError(f"{scores.shape} is not two or more blocks by two or more methods")
    if not np.isfinite(scores).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(scores))} scores are not finite")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha {alpha} is not between 0 and 1")
    n, k = scores.shape
    ranked = stats.rankdata(-scores.astype(np.float64), axis=1)
    ranks = ranked.mean(axis=0)

    between = n * ((ranks - (k + 1) / 2) ** 2).sum()  # sums of squares of ranks
    within = ((ranked - (k + 1) / 2) ** 2).sum()
    friedman = n * (k - 1) * between / within if within > 0 else 0.0
    # Exactly 0 where all blocks agree, because ranks are multiples of 1/2.
    left = n * (k - 1) - friedman
    f = (n - 1) * friedman / left if left > 0 else np.inf

    q = stats.studentized_range.ppf(1 - alpha, k, np.inf) / np.sqrt(2)
    distance = float(q * np.sqrt(k * (k + 1) / (6 * n)))
    return CriticalDifference(
        ranks,
        float(friedman),
        float(stats.chi2.sf(friedman, k - 1)),
        float(f),
        float(stats.f.sf(f, k - 1, (k - 1) * (n - 1))),
        distance,
        _groups(ranks, distance),
    )


def _groups(ranks: np.ndarray, distance: float) -> tuple[tuple[int, ...], ...]:
    """Return the longest runs of ranks that span less than `distance`.

    Methods in a run are sorted by rank.
    """
    order = np.argsort(ranks, kind="stable")
    groups, last = [], 0
    for start in range(len(order)):
        end = start
        while end + 1 < len(order) and ranks[order[end + 1]] - ranks[order[start]] < distance:
            end += 1
        # A run that ends where an earlier one ends lies within it; a bar joins two or more.
        if end > max(start, last):
            groups.append(tuple(order[start : end + 1].tolist()))
            last = end
    return tuple(groups)
