"""Adjacency by its formula, and propagation against dense products, alone and over trials."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.ops import graph, sparse


def dense(matrix: sparse.Csr, columns: int) -> np.ndarray:
    shape = (len(matrix.starts) - 1, columns)
    return sp.csr_matrix((matrix.values, matrix.columns, matrix.starts), shape=shape).toarray()


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 12))
@settings(deadline=None, max_examples=40)
def test_symmetric_normalisation(seed, n_users, n_items):
    rng = np.random.default_rng(seed)
    n = rng.integers(0, 40)
    user, item = rng.integers(0, n_users, n), rng.integers(0, n_items, n)
    built = graph.bipartite(user, item, (n_users, n_items), eps=1e-7, dtype=np.float64)
    plain = np.zeros((n_users, n_items))
    plain[user, item] = 1
    with np.errstate(divide="ignore"):
        left, right = (plain.sum(1) + 1e-7) ** -0.5, (plain.sum(0) + 1e-7) ** -0.5
    want = left[:, None] * plain * right[None]
    np.testing.assert_allclose(dense(built.forward, n_items), want, atol=1e-12)
    np.testing.assert_allclose(dense(built.transpose, n_users), want.T, atol=1e-12)


def test_row_normalisation_and_none():
    user, item = np.array([0, 0, 2]), np.array([1, 3, 3])
    left = graph.bipartite(user, item, (3, 4), norm="left")
    np.testing.assert_allclose(dense(left.forward, 4).sum(1), [1, 0, 1])
    none = graph.bipartite(user, item, (3, 4), norm="none")
    assert dense(none.forward, 4).sum() == 3
    with pytest.raises(ValueError, match="is not one of"):
        graph.bipartite(user, item, (3, 4), norm="both")


@pytest.mark.parametrize("kernel", [sparse._native, sparse._segments])
def test_kernels_agree_with_a_dense_product(kernel):
    rng = np.random.default_rng(0)
    matrix = sp.random(30, 20, 0.2, random_state=0, format="csr")
    x = rng.normal(size=(20, 5)).astype(np.float32)
    built = graph.from_scipy(matrix)
    np.testing.assert_allclose(kernel(built.forward, x), matrix @ x, atol=1e-5)


@pytest.mark.slow
def test_propagation_and_its_derivative_over_trials():
    rng = np.random.default_rng(1)
    matrix = sp.random(30, 20, 0.2, random_state=1, format="csr")
    built = graph.from_scipy(matrix)
    x = rng.normal(size=(3, 20, 5)).astype(np.float32)

    def energy(x, built):
        return jnp.square(graph.propagate(built, x)).sum()

    single = jax.jit(jax.grad(energy))
    np.testing.assert_allclose(single(x[0], built), 2 * matrix.T @ (matrix @ x[0]), atol=1e-4)
    trials = jax.jit(jax.vmap(jax.grad(energy), (0, None)))(x, built)
    for t in range(3):
        np.testing.assert_allclose(trials[t], single(x[t], built), atol=1e-6)
    folded = sparse._folded(built.forward, x)
    np.testing.assert_allclose(folded, np.stack([matrix @ one for one in x]), atol=1e-5)
    flipped = graph.propagate(built.flip(), jnp.ones((30, 2)))
    np.testing.assert_allclose(flipped, matrix.T @ np.ones((30, 2)), atol=1e-5)


@pytest.mark.slow
def test_a_graph_of_its_own_for_each_trial():
    matrices = [sp.random(6, 4, 0.5, random_state=s, format="csr") for s in (1, 2)]
    fixed = [graph.from_scipy(sp.csr_matrix(m.toarray() + 1)) for m in matrices]  # same pattern
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *fixed)
    x = np.ones((2, 4, 3), np.float32)
    out = jax.vmap(graph.propagate)(stacked, x)
    for t in range(2):
        np.testing.assert_allclose(out[t], (matrices[t].toarray() + 1) @ x[t], atol=1e-5)


@given(st.integers(0, 1000), st.integers(1, 6))
@settings(deadline=None, max_examples=30)
def test_top_k_rows(seed, k):
    rng = np.random.default_rng(seed)
    full = rng.integers(0, 4, size=(7, 9)).astype(float)  # many ties
    kept = graph.top_k_rows(sp.csr_matrix(full), k).toarray()
    for row, out in zip(full, kept, strict=True):
        order = sorted((j for j in range(9) if row[j]), key=lambda j: (-row[j], j))[:k]
        assert set(np.flatnonzero(out)) == set(order)
        assert (out[order] == row[order]).all()


@pytest.mark.slow
@given(
    st.integers(0, 10_000),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([1, 3, 16]),
)
@settings(deadline=None, max_examples=8)
def test_rows_of_a_sparse_product(seed, left_density, right_density, step):
    """Whatever the lengths of the rows and however many entries are added at once."""
    rng = np.random.default_rng(seed)
    matrices = [
        sp.csr_matrix(rng.normal(size=shape) * (rng.random(shape) < density))
        for shape, density in (((6, 5), left_density), ((5, 9), right_density))
    ]
    left, right = (graph.from_scipy(m).forward for m in matrices)
    left, right = jax.tree.map(jnp.asarray, (left, right))
    rows = jnp.array([4, 0, 4, 5])
    want = (matrices[0] @ matrices[1]).toarray()[np.asarray(rows)]
    product = sparse.product_rows(left, right, rows, 9, step=step)
    np.testing.assert_allclose(product, want, atol=1e-5)
    # An accelerator takes all rows at once, the shorter ones waiting for the longest.
    total = jnp.ones((4, 9))
    weights = jnp.array([2.0, 0.0, -1.0, 0.5])
    some = jnp.array([1, 0, 2, 4])
    out = sparse.add_rows(total, right, some, weights, step=step)
    want = 1 + weights[:, None] * matrices[1].toarray()[np.asarray(some)]
    np.testing.assert_allclose(out, want, atol=1e-5)
