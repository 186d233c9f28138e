"""Whether one recommender's values per user differ from another's: paired tests."""

from typing import NamedTuple

import numpy as np
from scipy import stats


class Paired(NamedTuple):
    """A comparison of two recommenders over the same users."""

    difference: float  # mean of first - second
    t: float  # p of the paired t-test, two-sided
    wilcoxon: float  # p of Wilcoxon's signed-rank test, two-sided; ties between users are left out
    changed: int  # users for whom the two differ


def paired(first: np.ndarray, second: np.ndarray) -> Paired:
    """Compares values [N] of the same users; p is 1 where no user differs.

    Raises:
      ValueError: not two vectors of one length.
    """
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"{first.shape} and {second.shape} are not values of the same users")
    apart = first.astype(np.float64) - second
    changed = int(np.count_nonzero(apart))
    if changed == 0:
        return Paired(0.0, 1.0, 1.0, 0)
    mean = float(apart.mean())
    if np.ptp(apart) == 0:  # a difference without spread is certain
        return Paired(mean, 0.0 if len(apart) > 1 else 1.0, _wilcoxon(apart), changed)
    return Paired(mean, float(stats.ttest_1samp(apart, 0.0).pvalue), _wilcoxon(apart), changed)


def _wilcoxon(apart: np.ndarray) -> float:
    return float(stats.wilcoxon(apart, method="asymptotic").pvalue)
