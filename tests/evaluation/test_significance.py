"""Statistics against SciPy, statsmodels and published tables, and the cases that those refuse."""

import tracemalloc
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mmjax.evaluation import significance
from mmjax.evaluation.critical_difference import critical_difference
from mmjax.evaluation.significance import (
    benjamini_hochberg,
    effect,
    holm,
    interval,
    paired,
    permutation,
)

SEVERAL = np.array([0.20, 0.21, 0.25, 0.19, 0.32])  # one metric of five seeds, skewed


def values_of_users(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Two recommenders with ties between users and between sizes of differences, [n] each."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 5, n) / 4
    return first, np.where(rng.random(n) < 0.3, first, rng.integers(0, 5, n) / 4)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(significance, "BLOCK", 100)


@pytest.mark.parametrize("method", ["percentile", "bca"])
@pytest.mark.parametrize("confidence", [0.9, 0.99])
@pytest.mark.parametrize("n", [5, 40])
def test_interval_equals_scipy_draw_for_draw(method, confidence, n):
    # In 64ths sums are exact: SciPy tells resamples that repeat the mean by their last digit.
    values = np.ceil(64 * np.random.default_rng(n).exponential(size=n)) / 64
    wanted = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=999,
        confidence_level=confidence,
        method=method,
        random_state=np.random.default_rng(7),
    ).confidence_interval
    found = interval(values, confidence=confidence, resamples=999, method=method, seed=7)
    assert (found.low, found.high) == pytest.approx(tuple(wanted), rel=1e-9)
    assert found.mean == pytest.approx(values.mean())
    assert found.std == pytest.approx(np.sqrt(((values - values.mean()) ** 2).sum() / (n - 1)))


def test_interval_of_means_that_repeat_the_mean():
    """The bias of BCa for two values is 0 by symmetry, though half the resamples tie with it."""
    values = np.array([0.1, 0.7])
    resampled = np.random.default_rng(0).integers(0, 2, (2000, 2)).sum(1)  # 0, 1 or 2 times 0.7
    below = np.mean(resampled == 0) + np.mean(resampled == 1) / 2
    levels = stats.norm.cdf(2 * stats.norm.ppf(below) + stats.norm.ppf([0.35, 0.65]))
    wanted = np.quantile(np.array([0.1, 0.4, 0.7])[resampled], levels)
    found = interval(values, confidence=0.3)
    assert (found.low, found.high) == pytest.approx(tuple(wanted))


def test_interval_hangs_on_no_last_digit():
    """0.2 + 0.4 + 0.1 may differ from 0.1 + 0.2 + 0.4; the sum of 1, 2 and 4 never does."""
    whole = np.array([1.0, 2.0, 4.0])
    for confidence in np.arange(0.1, 1, 0.1):
        wanted = interval(whole, confidence=confidence)
        found = interval(whole / 10, confidence=confidence)
        assert (10 * found.low, 10 * found.high) == pytest.approx((wanted.low, wanted.high))


def test_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(3)
    for method in ("percentile", "bca"):
        found = [
            interval(rng.normal(2, 1, 60), confidence=0.9, resamples=400, method=method, seed=i)
            for i in range(300)
        ]
        covered = sum(one.low <= 2 <= one.high for one in found)
        assert 252 <= covered <= 284  # 270 expected less a little; standard deviation 5


def test_interval_without_spread_and_what_it_refuses():
    one = interval(np.array([0.3]))
    assert one.mean == 0.3
    assert np.isnan([one.std, one.low, one.high]).all()
    same = interval(np.full(4, 0.25, np.float32))
    assert same == (0.25, 0.0, 0.25, 0.25)
    assert interval(np.array([0, 1, 1])).mean == pytest.approx(2 / 3)
    many = np.sqrt(np.arange(50))
    assert interval(many, seed=0) == interval(many, seed=0) != interval(many, seed=1)
    # A single resample leaves one side of the bias without any.
    assert np.isfinite(interval(SEVERAL, resamples=1)).all()
    for values in (np.array([]), np.ones((2, 2)), np.array([1.0, np.nan]), np.array([1.0, np.inf])):
        with pytest.raises(ValueError, match=r"not a vector|not finite"):
            interval(values)
    with pytest.raises(ValueError, match="not between 0 and 1"):
        interval(SEVERAL, confidence=95)
    with pytest.raises(ValueError, match="resamples are too few"):
        interval(SEVERAL, resamples=0)
    with pytest.raises(ValueError, match="there are bca, percentile"):
        interval(SEVERAL, method="basic")


def test_blocks_change_no_draw(request):
    first, second = values_of_users(4, 70)
    whole = interval(first, resamples=333), permutation(first, second, flips=333)
    request.getfixturevalue("small_blocks")
    assert (interval(first, resamples=333), permutation(first, second, flips=333)) == whole


def test_memory_is_bounded():
    """At once 500 resamples of 20,000 users would be 80 MB of indices and 80 of values."""
    rng = np.random.default_rng(5)
    first, second = rng.random(20_000), rng.random(20_000)
    tracemalloc.start()
    try:
        interval(first, resamples=500)
        permutation(first, second, flips=500)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40e6


@pytest.mark.parametrize("seed", range(3))
def test_paired_equals_scipy_for_many_users(seed):
    first, second = values_of_users(seed, 300)
    found = paired(first, second)
    assert found.difference == pytest.approx((first - second).mean())
    assert found.t == pytest.approx(stats.ttest_rel(first, second).pvalue)
    wanted = stats.wilcoxon(first, second, method="asymptotic").pvalue
    assert found.wilcoxon == pytest.approx(wanted)
    assert found.changed == (first != second).sum()
    other = paired(second, first)
    assert other == (
        -found.difference,
        pytest.approx(found.t),
        pytest.approx(wanted),
        found.changed,
    )


def test_wilcoxon_of_few_users_is_exact():
    rng = np.random.default_rng(6)
    for n in (1, 4, 16):
        first, second = rng.normal(0.4, 1, n), rng.normal(size=n)
        wanted = stats.wilcoxon(first, second, method="exact").pvalue
        assert paired(first, second).wilcoxon == pytest.approx(wanted)
        tied = np.concatenate([first, np.ones(5)]), np.concatenate([second, np.ones(5)])
        assert paired(*tied).wilcoxon == pytest.approx(wanted)
    # Differences of one size: SciPy's exact distribution is of ranks without ties.
    first, second = values_of_users(8, 14)
    changed = (first - second)[first != second]
    wanted = stats.wilcoxon(changed, method=stats.PermutationMethod(n_resamples=np.inf)).pvalue
    assert len(np.unique(np.abs(changed))) < len(changed) <= 14
    assert paired(first, second).wilcoxon == pytest.approx(wanted)
    # Five seeds that all agree: the normal approximation says 0.043.
    assert paired(np.arange(5) + 1.0, np.zeros(5)).wilcoxon == 2 / 2**5


def test_a_real_difference_is_found_and_none_is_not():
    rng = np.random.default_rng(1)
    base = rng.random(400)
    better = base + 0.1 + 0.2 * rng.normal(size=400)
    found = paired(better, base)
    assert found.difference > 0.05
    assert max(found.t, found.wilcoxon) < 1e-6
    assert permutation(better, base, flips=1000) == 1 / 1001
    # Of 200 comparisons of nothing about ten fall below 0.05, and about half below 0.5.
    none = []
    for seed in range(200):
        other = base + rng.normal(size=400)
        none.append([*paired(base, other)[1:3], permutation(base, other, flips=199, seed=seed)])
    assert ((np.array(none) < 0.05).sum(axis=0) <= 20).all()
    assert (np.abs((np.array(none) < 0.5).mean(axis=0) - 0.5) < 0.12).all()


@pytest.mark.parametrize("n", [2, 7, 12])
def test_permutation_of_few_users_equals_scipy(n):
    first, second = values_of_users(n, n)
    second[0] = first[0] - 0.25  # in no case do all tie, which SciPy need not enumerate
    wanted = stats.permutation_test(
        (first, second),
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    ).pvalue
    assert permutation(first, second) == pytest.approx(wanted)


def test_drawn_permutations_approach_all(monkeypatch):
    first, second = values_of_users(11, 16)
    exact = permutation(first, second)
    assert 0.05 < exact < 0.95
    monkeypatch.setattr(significance, "EXACT", 0)
    drawn = permutation(first, second, flips=40_000)
    assert drawn == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 40_000))
    assert permutation(first, second, seed=1) != permutation(first, second, seed=2)
    # Many users: a sum of normal differences under random signs is nearly normal.
    rng = np.random.default_rng(12)
    first = rng.normal(0.04, 1, 1000)
    wanted = 2 * stats.norm.sf(abs(first.sum()) / np.sqrt((first**2).sum()))
    assert 0.05 < wanted < 0.95
    assert permutation(first, np.zeros(1000)) == pytest.approx(wanted, abs=0.02)


def test_any_two_signs_are_drawn_apart():
    """Of two users who alone matter the signs agree in half the flips, also across words of 64."""
    n = 130
    for a in range(n):
        for b in {(a + 1) % n, (a + 64) % n}:
            apart = np.full(n, 1e-15)
            apart[[a, b]] = 1
            assert permutation(apart, np.zeros(n), flips=400) == pytest.approx(0.5, abs=0.13)


def test_permutation_of_few_among_many_is_exact():
    """Users who tie count for nothing, so three who differ have eight assignments."""
    first, second = np.full(30, 0.5), np.full(30, 0.5)
    first[[3, 9, 27]] = [0.6, 0.8, 1.0]
    assert permutation(first, second) == 2 / 2**3


def test_permutation_counts_ties_and_what_was_seen(monkeypatch):
    """0.1 + 0.2 + 0.3 in another order is another float, and still as far from 0."""
    apart = np.array([0.1, 0.2, 0.3, -0.3, -0.2, -0.1, 0.6])
    sums = [abs(sum(s * t for s, t in zip(signs, (1, 2, 3, 3, 2, 1, 6), strict=True)))
            for signs in product((-1, 1), repeat=7)]  # fmt: skip
    exact = np.mean(np.array(sums) >= 6)
    assert permutation(apart, np.zeros(7)) == exact
    monkeypatch.setattr(significance, "EXACT", 0)
    assert permutation(apart, np.zeros(7), flips=20_000) == pytest.approx(exact, abs=0.015)
    assert permutation(np.ones(1), np.zeros(1), flips=9) == 1.0
    # (b + 1) / (m + 1) with b = 0.
    assert permutation(np.arange(1, 61), np.zeros(60), flips=99) == 0.01
    with pytest.raises(ValueError, match="flips are too few"):
        permutation(apart, apart, flips=0)


def test_paired_without_spread():
    same = np.array([0.0, 1.0, 0.5])
    assert paired(same, same) == (0.0, 1.0, 1.0, 0)
    assert permutation(same, same) == 1.0
    assert effect(same, same) == (0.0, 0.0, 0.0, 0.0, 1.0)
    always = paired(np.ones(50), np.zeros(50))
    assert (always.difference, always.t, always.changed) == (1.0, 0.0, 50)
    assert always.wilcoxon < 1e-6
    assert permutation(np.ones(10), np.zeros(10)) == 2 / 2**10
    assert effect(np.zeros(50), np.ones(50)) == (-np.inf, -1.0, 0.0, 1.0, 0.0)
    # One amount up to rounding, where SciPy warns that it lost all digits.
    base = np.random.default_rng(2).random(50)
    assert paired(base + 0.1, base).t == 0.0
    assert effect(base + 0.1, base).d_z == np.inf
    # Rounding around nothing is no such amount.
    noise = np.tile([1e-16, -1e-16, 2e-16, -2e-16], 5)
    assert paired(noise, np.zeros(20)).t == pytest.approx(1.0)


def test_one_user():
    assert paired(np.ones(1), np.zeros(1)) == (1.0, 1.0, 1.0, 1)
    assert paired(np.ones(1), np.ones(1)) == (0.0, 1.0, 1.0, 0)
    assert permutation(np.ones(1), np.zeros(1)) == 1.0
    found = effect(np.ones(1), np.zeros(1))
    assert np.isnan(found.d_z)
    assert found[1:] == (1.0, 1.0, 0.0, 0.0)


@pytest.mark.parametrize("function", [paired, permutation, effect])
def test_what_is_not_of_the_same_users_is_refused(function):
    with pytest.raises(ValueError, match="not values of the same users"):
        function(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="not values of the same users"):
        function(np.ones((3, 1)), np.ones((3, 1)))
    with pytest.raises(ValueError, match="not a vector"):
        function(np.ones(0), np.ones(0))
    for first, second in ((np.nan, 1), (1, np.nan), (np.inf, np.inf)):
        with pytest.raises(ValueError, match="1 values are not finite"):
            function(np.array([0.5, first]), np.array([0.5, second]))


def test_effects():
    first = np.array([0.5, 0.9, 0.4, 0.4, 0.7, 0.2])
    second = np.array([0.1, 0.4, 0.4, 0.7, 0.5, 0.3])
    found = effect(first, second)
    # Differences 0.4, 0.5, 0, -0.3, 0.2, -0.1 have ranks 4, 5, -, 3, 2, 1.
    assert found.rank_biserial == pytest.approx((4 + 5 + 2 - 3 - 1) / 15)
    assert found[2:] == pytest.approx((3 / 6, 2 / 6, 1 / 6))
    assert found.d_z == pytest.approx(stats.ttest_rel(first, second).statistic / np.sqrt(6))
    # Tied sizes share a rank: 1, 1, -1 and 2 have ranks 2, 2, 2 and 4.
    tied = effect(np.array([1, 1, -1, 2]), np.zeros(4, int))
    assert tied.rank_biserial == pytest.approx((2 + 2 + 4 - 2) / 10)


@given(st.lists(st.integers(-4, 4), min_size=2, max_size=30))
@settings(deadline=None)
def test_tests_and_effects_agree(differences):
    """Turning the comparison round turns effects, not p; and p falls only with an effect."""
    first, second = np.array(differences) / 4, np.zeros(len(differences))
    one, other = effect(first, second), effect(second, first)
    assert (one.d_z, one.rank_biserial) == (-other.d_z, -other.rank_biserial)
    assert (one.better, one.worse) == (other.worse, other.better)
    assert one.better + one.worse + one.tied == pytest.approx(1)
    found = paired(first, second)
    assert found[1:] == pytest.approx(paired(second, first)[1:])
    assert 0 <= min(found.t, found.wilcoxon) <= max(found.t, found.wilcoxon) <= 1
    assert one.rank_biserial != 0 or found.wilcoxon == pytest.approx(1)
    p = permutation(first, second, flips=200)
    assert p == permutation(second, first, flips=200)
    assert p == 1 or first.sum() != 0


def test_corrections_of_four_by_hand():
    p = np.array([0.04, 0.01, 0.03, 0.005])
    # Holm: 0.005 x 4, 0.01 x 3, 0.03 x 2, then 0.04 x 1 raised to its predecessor.
    assert holm(p) == pytest.approx([0.06, 0.03, 0.06, 0.02])
    # Benjamini-Hochberg: 0.04 x 4/4, then 0.03 x 4/3, 0.01 x 4/2, 0.005 x 4/1.
    assert benjamini_hochberg(p) == pytest.approx([0.04, 0.02, 0.04, 0.02])
    assert holm(np.array([0.6, 0.9])).tolist() == [1.0, 1.0]
    assert benjamini_hochberg(np.array([0.6, 0.7])) == pytest.approx([0.7, 0.7])
    for correct in (holm, benjamini_hochberg):
        assert correct(np.array([0.03])) == pytest.approx([0.03])
        assert len(correct(np.array([]))) == 0
    assert p.tolist() == [0.04, 0.01, 0.03, 0.005]  # what was given is left as it was


def test_benjamini_and_hochbergs_own_example():
    """Fifteen p of a thrombolysis trial: four are found at 0.05, three under Holm's bound."""
    found = [0.0001, 0.0004, 0.0019, 0.0095]
    other = [0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.324, 0.4262, 0.5719, 0.6528, 0.759, 1.0]
    p = np.array(found + other)
    assert (benjamini_hochberg(p) <= 0.05).tolist() == [True] * 4 + [False] * 11
    assert (holm(p) <= 0.05).tolist() == [True] * 3 + [False] * 12


probabilities = st.lists(
    st.sampled_from([0, 1e-9, 0.01, 0.02, 0.3, 0.5, 1]) | st.floats(1e-12, 1), min_size=1
)


@given(probabilities)
@settings(deadline=None)
def test_benjamini_hochberg_equals_scipy(p):
    p = np.array(p, float)
    assert benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p), rel=1e-9, abs=0)


@pytest.mark.slow
def test_corrections_equal_statsmodels():
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    rng = np.random.default_rng(10)
    for m in (1, 2, 9, 60):  # few: each call collects garbage, a third of a second
        p = rng.random(m) ** 4
        p[rng.random(m) < 0.2] = rng.choice([0, 0.01, 1])
        wanted = multitest.multipletests(p, method="holm")[1]
        assert holm(p) == pytest.approx(wanted, rel=1e-9, abs=0)
        wanted = multitest.multipletests(p, method="fdr_bh")[1]
        assert benjamini_hochberg(p) == pytest.approx(wanted, rel=1e-9, abs=0)


@pytest.mark.parametrize("correct", [holm, benjamini_hochberg])
@pytest.mark.parametrize("p", [[0.1, np.nan], [-0.1], [1.1], [[0.1, 0.2]]])
def test_what_is_no_probability_is_refused(correct, p):
    with pytest.raises(ValueError, match="between 0 and 1"):
        correct(np.array(p))


# Table 6 of Demšar: AUC of C4.5, with m, with cf and with both tuned. He ranked before rounding:
# the last of "voting" is printed as 0.975 and ranked below the third.
DEMSAR = np.array(
    [
        [0.763, 0.768, 0.771, 0.798],  # adult (sample)
        [0.599, 0.591, 0.590, 0.569],  # breast cancer
        [0.954, 0.971, 0.968, 0.967],  # breast cancer wisconsin
        [0.628, 0.661, 0.654, 0.657],  # cmc
        [0.882, 0.888, 0.886, 0.898],  # ionosphere
        [0.936, 0.931, 0.916, 0.931],  # iris
        [0.661, 0.668, 0.609, 0.685],  # liver disorders
        [0.583, 0.583, 0.563, 0.625],  # lung cancer
        [0.775, 0.838, 0.866, 0.875],  # lymphography
        [1.000, 1.000, 1.000, 1.000],  # mushroom
        [0.940, 0.962, 0.965, 0.962],  # primary tumor
        [0.619, 0.666, 0.614, 0.669],  # rheum
        [0.972, 0.981, 0.975, 0.9749],  # voting
        [0.957, 0.978, 0.946, 0.970],  # wine
    ]
)


def test_critical_difference_of_demsars_example():
    found = critical_difference(DEMSAR)
    assert found.ranks == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    assert found.distance == pytest.approx(1.25, abs=5e-3)
    assert found.groups == ((3, 1, 2, 0),)
    # He leaves ties uncorrected: a pair on iris, lung cancer and primary tumor, all on mushroom.
    ties = 1 - (3 * (2**3 - 2) + 4**3 - 4) / (14 * 4 * (4**2 - 1))
    uncorrected = found.friedman * ties
    assert uncorrected == pytest.approx(9.28, abs=5e-3)
    assert 13 * uncorrected / (14 * 3 - uncorrected) == pytest.approx(3.69, abs=5e-3)
    # "At p = 0.10 ... C4.5 is significantly worse than C4.5+m and C4.5+m+cf", cf in either group.
    loose = critical_difference(DEMSAR, alpha=0.10)
    assert loose.distance == pytest.approx(1.12, abs=5e-3)
    assert loose.groups == ((3, 1, 2), (2, 0))


@pytest.mark.parametrize(
    ("alpha", "wanted"),
    [
        (0.05, [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164]),
        (0.10, [1.645, 2.052, 2.291, 2.459, 2.589, 2.693, 2.780, 2.855, 2.920]),
    ],
)
def test_critical_values_of_demsars_table_5(alpha, wanted):
    for k, q in zip(range(2, 11), wanted, strict=True):
        found = critical_difference(np.ones((6, k)), alpha=alpha)
        assert found.distance / np.sqrt(k * (k + 1) / 36) == pytest.approx(q, abs=1.1e-3)


@pytest.mark.parametrize("levels", [3, 1000])
def test_friedman_equals_scipy_and_its_f_an_analysis_of_variance(levels):
    """With ties, of three levels, and without."""
    scores = np.random.default_rng(9).integers(0, levels, (12, 5)) + np.array([0, 0, 0, 1, 0])
    found = critical_difference(scores)
    wanted = stats.friedmanchisquare(*scores.T)
    assert found.friedman == pytest.approx(wanted.statistic)
    assert found.friedman_p == pytest.approx(wanted.pvalue)
    # F of methods in the two-way layout of ranks; blocks have no effect on a rank.
    ranks = stats.rankdata(-scores, axis=1)
    explained = 12 * ((ranks.mean(0) - 3) ** 2).sum() / 4
    error = ((ranks - ranks.mean(0)) ** 2).sum() / (4 * 11)
    assert found.iman_davenport == pytest.approx(explained / error)
    assert found.iman_davenport_p == pytest.approx(1 - stats.f.cdf(explained / error, 4, 44))
    assert found.ranks == pytest.approx(ranks.mean(0))


def test_two_methods_are_a_sign_test():
    first, second = np.array([3, 3, 3, 1, 2, 5, 5]), np.array([1, 2, 2, 2, 2, 0, 4])
    found = critical_difference(np.stack([first, second], axis=1))
    assert found.ranks == pytest.approx([(5 + 2 + 1.5) / 7, (10 + 1 + 1.5) / 7])
    assert found.friedman == pytest.approx((5 - 1) ** 2 / (5 + 1))
    assert found.distance == pytest.approx(stats.norm.ppf(0.975) / np.sqrt(7), rel=1e-4)
    assert found.groups == ((0, 1),)


def test_all_tied_and_all_agreed():
    tied = critical_difference(np.ones((4, 3)))
    assert tied.ranks.tolist() == [2, 2, 2]
    assert (tied.friedman, tied.friedman_p, tied.iman_davenport, tied.iman_davenport_p) == (
        0,
        1,
    ) * 2
    assert tied.groups == ((0, 1, 2),)
    agreed = critical_difference(np.tile([0.2, 0.9, 0.4], (40, 1)))
    assert agreed.ranks.tolist() == [3, 1, 2]
    assert agreed.friedman == pytest.approx(80)
    assert (agreed.iman_davenport, agreed.iman_davenport_p) == (np.inf, 0)
    assert agreed.groups == ()  # 0.52 apart are enough: each differs from each


@given(st.integers(2, 8), st.integers(2, 7), st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_groups_are_the_longest_runs(n, k, seed):
    rng = np.random.default_rng(seed)
    scores = np.arange(k) + rng.integers(0, 4, (n, k))
    found = critical_difference(scores)
    alike = np.abs(found.ranks[:, None] - found.ranks) < found.distance
    sets = [set(group) for group in found.groups]
    for a, b in product(range(k), repeat=2):
        # Two methods are joined by a bar exactly where their ranks do not differ.
        assert a == b or alike[a, b] == any({a, b} <= one for one in sets)
    assert not any(one <= other for one in sets for other in sets if one is not other)
    for group in found.groups:
        assert (np.diff(found.ranks[list(group)]) >= 0).all()


def test_scores_that_cannot_be_compared_are_refused():
    for scores in (np.ones(4), np.ones((1, 4)), np.ones((4, 1))):
        with pytest.raises(ValueError, match="two or more blocks by two or more methods"):
            critical_difference(scores)
    with pytest.raises(ValueError, match="2 scores are not finite"):
        critical_difference(np.array([[1.0, np.nan], [np.inf, 2.0]]))
    for alpha in (0, 1):
        with pytest.raises(ValueError, match="alpha"):
            critical_difference(np.ones((2, 2)), alpha=alpha)
    unsigned = critical_difference(np.array([[0, 1], [0, 1]], np.uint8))
    assert unsigned.ranks.tolist() == [2, 1]
