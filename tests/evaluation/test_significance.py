"""Paired tests against SciPy's own functions of two samples, and the cases that they refuse."""

import numpy as np
import pytest
from scipy import stats

from mmjax.evaluation.significance import paired


def test_equals_scipy():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 5, 300) / 4
    second = np.where(rng.random(300) < 0.5, first, rng.integers(0, 5, 300) / 5)
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


def test_a_real_difference_is_found_and_none_is_not():
    rng = np.random.default_rng(1)
    base = rng.random(400)
    better = paired(base + 0.1 + 0.2 * rng.normal(size=400), base)
    assert better.difference > 0.05
    assert max(better.t, better.wilcoxon) < 1e-6
    # Of twenty comparisons of nothing about one falls below 0.05.
    none = [paired(base, base + rng.normal(size=400)) for _ in range(20)]
    assert sum(one.t < 0.05 for one in none) <= 4


def test_cases_without_spread():
    same = np.array([0.0, 1.0, 0.5])
    assert paired(same, same) == (0.0, 1.0, 1.0, 0)
    always = paired(np.ones(50), np.zeros(50))
    assert (always.difference, always.t, always.changed) == (1.0, 0.0, 50)
    assert always.wilcoxon < 1e-6
    assert paired(np.ones(1), np.zeros(1)).t == 1.0
    with pytest.raises(ValueError, match="not values of the same users"):
        paired(np.ones(3), np.ones(4))
