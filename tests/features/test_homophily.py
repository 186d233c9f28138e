"""Feature homophily against the sum over edges as it is written."""

import math

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.features.homophily import homophily


def written(features, present, neighbours):
    edges = [(i, j) for i, j in np.argwhere(neighbours) if present[i] and present[j]]
    mean = np.mean([features[k] for edge in edges for k in edge], axis=0)
    at = [(features[i] - mean, features[j] - mean) for i, j in edges]
    agreement = sum(x @ y for x, y in at)
    return agreement / math.sqrt(sum(x @ x for x, _ in at) * sum(y @ y for _, y in at))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(2, 9), st.sampled_from((1, 3, 64, 130)))
def test_the_sum_over_edges(seed, items, width):
    rng = np.random.default_rng(seed)
    neighbours = (rng.random((items, items)) < 0.4).astype(float)
    neighbours[0, 1] = 1
    present = rng.random(items) < 0.8
    present[:2] = True
    features = rng.normal(size=(items, width))
    found = homophily(features, present, sp.csr_matrix(neighbours))
    assert found == pytest.approx(written(features, present, neighbours), abs=1e-9)
    assert -1 - 1e-9 <= found <= 1 + 1e-9
    moved = homophily(5 - 3 * features, present, sp.csr_matrix(neighbours))
    assert moved == pytest.approx(found, abs=1e-9)


def test_one_column_is_pearsons_correlation_over_symmetric_edges():
    rng = np.random.default_rng(0)
    neighbours = rng.random((30, 30)) < 0.2
    neighbours |= neighbours.T
    x = rng.normal(size=30)
    i, j = np.nonzero(neighbours)
    found = homophily(x[:, None], np.ones(30, bool), sp.csr_matrix(neighbours.astype(float)))
    assert found == pytest.approx(np.corrcoef(x[i], x[j])[0, 1], abs=1e-9)


def test_alike_opposite_and_undefined():
    everyone = np.ones(4, bool)
    couples = sp.csr_matrix(np.kron(np.eye(2), [[0, 1], [1, 0]]))
    alike = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    assert homophily(alike, everyone, couples) == pytest.approx(1)
    assert homophily(alike[[0, 2, 1, 3]], everyone, couples) == pytest.approx(-1)
    assert math.isnan(homophily(np.ones((4, 2)), everyone, couples))
    assert math.isnan(homophily(alike, np.array([1, 0, 1, 0], bool), couples))
