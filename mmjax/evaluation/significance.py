"""Statistics for comparing recommenders: intervals, paired tests, effect sizes.

p values are corrected for several tests by `holm` and `benjamini_hochberg`. Values [N] are of N
users or of N seeds. Two recommenders are compared on the same N in the same order, and every
difference is first - second. Values must be finite: the caller leaves out users without a value,
because only the caller knows why they have none. Several methods at once are in
`critical_difference`.
"""

from typing import Literal, NamedTuple

import numpy as np
from scipy import special, stats

BLOCK = 1 << 20  # numbers drawn at once: tens of MB with their copies, for any number of users
EXACT = 16  # up to so many users all 2**16 assignments of signs are enumerated: quick and exact
ROUNDING = 1e-12  # relative tolerance: of sums in another order, of differences at another level


class Interval(NamedTuple):
    """Mean and its confidence interval, in the values' unit."""

    mean: float
    std: float  # sample standard deviation, over N - 1; NaN for one value
    low: float  # NaN for one value
    high: float


class Paired(NamedTuple):
    """Tests of two recommenders over the same users."""

    difference: float  # mean of first - second
    t: float  # p of the paired t-test, two-sided
    wilcoxon: float  # p of Wilcoxon's signed-rank test, two-sided; ties between users are left out
    changed: int  # users for whom the two differ


class Effect(NamedTuple):
    """Size of a difference, above 0 if the first is better."""

    d_z: float  # Cohen's: mean difference / standard deviation of the differences
    rank_biserial: float  # -1 to 1
    better: float  # share of users for whom the first has the higher value
    worse: float
    tied: float


def interval(
    values: np.ndarray,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    method: Literal["bca", "percentile"] = "bca",
    seed: int = 0,
) -> Interval:
    """Return the mean of values [N] with its bootstrap confidence interval.

    "percentile" takes the quantiles of the resampled means (Efron and Tibshirani, An Introduction
    to the Bootstrap, 1993, chapter 13); "bca" corrects them for bias and skewness (Efron, JASA
    1987; chapter 14 of the book). Both are too narrow for fewer than about ten values, such as
    seeds. One value says nothing of its spread, so `std` and both ends are NaN; equal values have
    both ends at the mean.

    Raises:
      ValueError: values that are not a finite vector of at least one; a confidence outside (0, 1);
        no resamples; another method.
    """
    _check(values)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
    if resamples < 1:
        raise ValueError(f"{resamples} resamples are too few")
    if method not in ("bca", "percentile"):
        raise ValueError(f"no bootstrap interval {method!r}; there are bca, percentile")
    values = values.astype(np.float64)
    mean = float(values.mean())
    if len(values) == 1:
        return Interval(mean, np.nan, np.nan, np.nan)
    if np.ptp(values) == 0:
        return Interval(mean, 0.0, mean, mean)
    means = _resampled_means(values, resamples, seed)
    levels = np.array([0.5 - confidence / 2, 0.5 + confidence / 2])
    if method == "bca":
        levels = _bca(values, means, levels)
    low, high = np.quantile(means, levels)
    return Interval(mean, float(values.std(ddof=1)), float(low), float(high))


def _resampled_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Return means [resamples] of N values drawn with replacement.

    They are the same for any BLOCK.
    """
    rng, n = np.random.default_rng(seed), len(values)
    rows = max(1, BLOCK // n)
    means = np.empty(resamples)
    for start in range(0, resamples, rows):
        part = means[start : start + rows]
        part[:] = values[rng.integers(0, n, (len(part), n))].mean(axis=1)
    return means


def _bca(values: np.ndarray, means: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Adjust levels [2] for bias and acceleration.

    The formulas are the book's eq. 14.10, 14.14 and 14.15.
    """
    offsets = means - values.mean()
    # Resamples of few values often have exactly the values' mean; half of those count as below, as
    # in SciPy. A tolerance finds them, because the order of adding changes the last digit.
    rounding = ROUNDING * np.abs(values).max()
    below = np.mean(offsets < -rounding) + np.mean(np.abs(offsets) <= rounding) / 2
    # All resamples on one side would put the bias at infinity.
    bias = special.ndtri(np.clip(below, 0.5 / len(means), 1 - 0.5 / len(means)))
    # Leaving out value i moves the mean by (mean - value) / (N - 1), so the jackknife of
    # eq. 14.15 needs no second pass over N means.
    centred = values - values.mean()
    acceleration = (centred**3).sum() / (6 * (centred**2).sum() ** 1.5)
    z = bias + special.ndtri(levels)
    return special.ndtr(bias + z / (1 - acceleration * z))


def paired(first: np.ndarray, second: np.ndarray) -> Paired:
    """Test if values [N] of the same users differ.

    p is 1 if no user differs. t is Student's test of the mean difference. A difference that is the
    same for all of two or more users is certain (t = 0); one user proves nothing (t = 1). wilcoxon
    is the signed-rank test (Wilcoxon, Biometrics 1945) without the users that tie: exact for up to
    EXACT users who differ, also where differences tie in size, and normal, corrected for ties,
    beyond.

    Raises:
      ValueError: not two finite vectors of one length, at least one.
    """
    differences = _differences(first, second)
    mean = float(differences.mean())
    changed = differences[differences != 0]
    if len(changed) == 0:
        return Paired(0.0, 1.0, 1.0, 0)
    if np.ptp(differences) <= ROUNDING * abs(mean):
        t = 0.0 if len(differences) > 1 else 1.0
    else:
        t = float(stats.ttest_1samp(differences, 0.0).pvalue)
    if len(changed) <= EXACT:
        # The signed-rank test is a sign-flip test of ranks.
        wilcoxon = _enumerated(np.sign(changed) * stats.rankdata(np.abs(changed)))
    else:
        wilcoxon = float(stats.wilcoxon(changed, method="asymptotic").pvalue)
    return Paired(mean, t, wilcoxon, len(changed))


def permutation(
    first: np.ndarray, second: np.ndarray, *, flips: int = 10_000, seed: int = 0
) -> float:
    """Return p of the two-sided sign-flip permutation test.

    It tests the mean difference of values [N]. If the recommenders were exchangeable, each user's
    difference could as well have had the other sign (Fisher, The Design of Experiments, 1935). Up
    to EXACT users who differ, all assignments are counted and p is exact: 1 where no user differs.
    Beyond, `flips` random ones are drawn and p = (b + 1) / (flips + 1), b of them at least as far
    from 0 as the observed sum (Phipson and Smyth, SAGMB 2010): valid, and never 0.

    Raises:
      ValueError: not two finite vectors of one length, at least one; no flips.
    """
    differences = _differences(first, second)
    if flips < 1:
        raise ValueError(f"{flips} flips are too few")
    differences = differences[differences != 0]  # flipping the sign of 0 changes no sum
    if len(differences) <= EXACT:
        return _enumerated(differences)
    rng, n = np.random.default_rng(seed), len(differences)
    total, rounding = differences.sum(), ROUNDING * np.abs(differences).sum()
    rows, words = max(1, BLOCK // n), -(-n // 64)
    extreme = 0
    for start in range(0, flips, rows):
        # One bit per sign: 64 in a word, whole words for each flip, so BLOCK changes no draw.
        drawn = rng.integers(0, 1 << 64, (min(rows, flips - start), words), dtype=np.uint64)
        signs = np.unpackbits(drawn.view(np.uint8), axis=1, count=n)
        sums = 2 * (signs @ differences) - total
        extreme += int(np.count_nonzero(np.abs(sums) >= abs(total) - rounding))
    return (extreme + 1) / (flips + 1)


def effect(first: np.ndarray, second: np.ndarray) -> Effect:
    """Compute effect sizes of the difference between values [N].

    The values are of the same users. d_z is Cohen's for pairs, t / sqrt(N) (Lakens, Frontiers in
    Psychology 2013, eq. 6 and 7): 0 where no user differs, infinite where all differ by one amount,
    NaN for one user. rank_biserial is the matched-pairs rank correlation, the rank sum of
    |difference| in favour of the first minus that against it, over both (Kerby, Comprehensive
    Psychology 2014): users who tie are left out, and it is 0 where all do.

    Raises:
      ValueError: not two finite vectors of one length, at least one.
    """
    differences = _differences(first, second)
    mean = float(differences.mean())
    if len(differences) == 1:
        d_z = np.nan
    elif np.ptp(differences) <= ROUNDING * abs(mean):
        d_z = 0.0 if mean == 0 else float(np.copysign(np.inf, mean))
    else:
        d_z = mean / float(differences.std(ddof=1))
    changed = differences[differences != 0]
    ranks = stats.rankdata(np.abs(changed))
    rank_biserial = float((np.sign(changed) * ranks).sum() / max(1.0, ranks.sum()))
    better, worse = float(np.mean(differences > 0)), float(np.mean(differences < 0))
    return Effect(d_z, rank_biserial, better, worse, float(np.mean(differences == 0)))


def holm(p: np.ndarray) -> np.ndarray:
    """Adjust p values [M] to bound the chance of any false finding.

    Holm, Scand J Stat 1979: the i-th smallest of M is times M - i + 1, at least its predecessor, at
    most 1; no assumption on how the tests depend.

    Raises:
      ValueError: not a vector of probabilities (NaN is none).
    """
    _check_probabilities(p)
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(adjusted, 1)


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Adjust p values [M] to bound the false discovery rate.

    The rate is the share of false findings among findings. The i-th smallest of M is times M / i,
    at most its successor (Benjamini and Hochberg, JRSS B 1995, eq. 1); for tests that are
    independent or positively dependent.

    Raises:
      ValueError: not a vector of probabilities (NaN is none).
    """
    _check_probabilities(p)
    falling = np.argsort(-p)
    adjusted = np.empty(len(p))
    adjusted[falling] = np.minimum.accumulate(p[falling] * len(p) / np.arange(len(p), 0, -1))
    return adjusted


def _enumerated(apart: np.ndarray) -> float:
    """Return the exact p of a sign-flip test by enumeration.

    It is the share of the 2**N assignments of signs to [N] whose sum is as far from 0 as the given
    one, or farther.
    """
    sums = np.zeros(1)
    for size in apart:
        sums = np.concatenate([sums + size, sums - size])
    rounding = ROUNDING * np.abs(apart).sum()
    return float(np.mean(np.abs(sums) >= abs(apart.sum()) - rounding))


def _differences(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"{first.shape} and {second.shape} are not values of the same users")
    _check(first)
    _check(second)
    return first.astype(np.float64) - second


def _check(values: np.ndarray) -> None:
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"{values.shape} is not a vector of values")
    if not np.isfinite(values).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(values))} values are not finite")


def _check_probabilities(p: np.ndarray) -> None:
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():  # a comparison with NaN is false
        raise ValueError("p values must be a vector of numbers between 0 and 1")
