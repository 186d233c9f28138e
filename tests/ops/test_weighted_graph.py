"""Patterns, drawn edges and learned weights against dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fitting import same

from mmjax.ops import graph, weighted_graph

N, M, E, D = 7, 5, 13, 3  # rows, columns, edges, width: fixed, so that nothing compiles twice
SEEDS = given(st.integers(0, 10_000))
FEW = settings(deadline=None, max_examples=15)


def random_pattern(rng, count=E):
    rows, columns = np.divmod(rng.choice(N * M, count, replace=False), M)
    return weighted_graph.pattern(rows, columns, (N, M))


def dense(pattern, weights):
    """[N, M] of weights [E], read by row; by column they must be the same."""
    built = weighted_graph.weighted(pattern, jnp.asarray(weights))
    matrices = []
    for side, shape in ((built.forward, (N, M)), (built.transpose, (M, N))):
        assert (np.diff(side.rows) >= 0).all()
        np.testing.assert_array_equal(side.starts, np.searchsorted(side.rows, range(shape[0] + 1)))
        matrix = np.zeros(shape, np.float32)
        matrix[side.rows, side.columns] = side.values
        matrices.append(matrix)
    np.testing.assert_array_equal(matrices[0], matrices[1].T)
    return matrices[0]


@pytest.mark.slow
@SEEDS
@FEW
def test_a_pattern_has_each_pair_once_and_knows_it_by_column(seed):
    rng = np.random.default_rng(seed)
    rows, columns = rng.integers(N, size=40), rng.integers(M, size=40)
    built = weighted_graph.pattern(rows, columns, (N, M))
    assert built.shape == (N, M)
    assert built.flip().shape == (M, N)
    there = np.zeros((N, M), bool)
    there[rows, columns] = True
    np.testing.assert_array_equal(dense(built, np.ones(there.sum(), np.float32)), there)
    weights = np.arange(1, there.sum() + 1, dtype=np.float32)
    flipped = weighted_graph.weighted(built.flip(), weights[built.transpose.order])
    same(flipped, weighted_graph.weighted(built, weights).flip())
    same(weighted_graph.degrees(built), tuple(there.sum(axis).astype(np.int32) for axis in (1, 0)))


@pytest.mark.slow
@SEEDS
@FEW
def test_keeping_edges_is_building_with_fewer(seed):
    rng = np.random.default_rng(seed)
    whole = random_pattern(rng)
    for count in (1, 6, E):
        chosen = np.sort(rng.choice(E, count, replace=False)).astype(np.int32)
        side = whole.forward
        fewer = weighted_graph.pattern(side.rows[chosen], side.columns[chosen], (N, M))
        same(jax.jit(weighted_graph.keep)(whole, chosen), fewer)


@pytest.mark.slow
@SEEDS
@FEW
def test_of_neighbours_is_a_pattern_of_k_edges_a_row(seed):
    rng = np.random.default_rng(seed)
    columns = np.stack([rng.choice(M, 2, replace=False) for _ in range(N)])
    weights = rng.normal(size=(N, 2)).astype(np.float32)
    matrix = np.zeros((N, M), np.float32)
    np.put_along_axis(matrix, columns, weights, axis=1)
    built = weighted_graph.of_neighbours(jnp.asarray(columns), M)
    np.testing.assert_array_equal(dense(built, weights.ravel()), matrix)


@pytest.mark.slow
@SEEDS
@FEW
def test_symmetric_weights_are_those_of_the_bipartite_graph(seed):
    pattern = random_pattern(np.random.default_rng(seed))
    expected = graph.bipartite(pattern.forward.rows, pattern.forward.columns, (N, M), eps=1e-7)
    found = weighted_graph.symmetric(pattern, 1e-7, np.float32)
    np.testing.assert_allclose(found, expected.forward.values, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("block", [4, weighted_graph.BLOCK])
@pytest.mark.parametrize("batched", ["nothing", "x", "weights", "both"])
def test_aggregate_and_both_gradients_are_those_of_the_dense_product(batched, block, monkeypatch):
    """Alone, and under vmap over x [., M, D], over weights [., E], over both."""
    monkeypatch.setattr(
        weighted_graph, "BLOCK", block
    )  # several blocks of edges, the last one not full
    rng = np.random.default_rng(0)
    pattern = random_pattern(rng)
    rows, columns = pattern.forward.rows, pattern.forward.columns
    in_axes = tuple(0 if batched in (name, "both") else None for name in ("weights", "x", "y"))
    in_axes = in_axes[:2] + ((None,) if batched == "nothing" else (0,))
    weights, x, cotangent = (
        jnp.asarray(rng.normal(size=((4,) if axis == 0 else ()) + shape))
        for axis, shape in zip(in_axes, ((E,), (M, D), (N, D)), strict=True)
    )

    def sparse(weights, x, cotangent):
        y, back = jax.vjp(lambda w, x: weighted_graph.aggregate(pattern, w, x), weights, x)
        return y, *back(cotangent)

    def plain(weights, x, cotangent):
        def matrix(w):
            return jnp.zeros((N, M), w.dtype).at[rows, columns].set(w)

        y, back = jax.vjp(lambda w, x: matrix(w) @ x, weights, x)
        return y, *back(cotangent)

    lift = (lambda f: f) if batched == "nothing" else (lambda f: jax.vmap(f, in_axes))
    found, expected = (jax.jit(lift(f))(weights, x, cotangent) for f in (sparse, plain))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("block", [4, weighted_graph.BLOCK])
def test_products_and_their_gradients_are_entries_of_the_dense_product(block, monkeypatch):
    monkeypatch.setattr(weighted_graph, "BLOCK", block)
    rng = np.random.default_rng(1)
    pattern = random_pattern(rng)
    rows, columns = pattern.forward.rows, pattern.forward.columns
    x, y, cotangent = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((N, D), (M, D), (E,))
    )
    results = []
    for product in (
        lambda x, y: weighted_graph.products(pattern, x, y),
        lambda x, y: (x @ y.T)[rows, columns],
    ):
        value, back = jax.vjp(jax.jit(product), x, y)
        results.append((value, *back(cotangent)))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@jax.jit
def softmaxes(pattern, logits, cotangent):
    """Sparse and dense, and their gradients."""
    rows, columns = pattern.forward.rows, pattern.forward.columns

    def plain(logits):
        matrix = jnp.full((N, M), -1e9).at[rows, columns].set(logits)
        return jax.nn.softmax(matrix, axis=1)[rows, columns]

    results = []
    for function in (lambda a: weighted_graph.softmax(pattern, a), plain):
        value, back = jax.vjp(function, logits)
        results.append((value, *back(cotangent)))
    return results


@SEEDS
@FEW
def test_softmax_is_that_of_each_dense_row(seed):
    """Also of large logits; a row without edges has nothing to sum."""
    rng = np.random.default_rng(seed)
    logits, cotangent = rng.normal(size=(2, E)).astype(np.float32)
    for a, b in zip(*softmaxes(random_pattern(rng), logits * 50, cotangent), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
@SEEDS
@FEW
def test_a_draw_has_its_number_of_edges_in_order_and_none_twice(seed):
    odds = np.random.default_rng(seed).normal(size=E).astype(np.float32) * 3
    draw = jax.jit(weighted_graph.draw, static_argnums=2)
    for count in (1, 6, E):
        drawn = draw(jax.random.key(seed), odds, count)
        assert drawn.shape == (count,)
        assert (np.diff(drawn) > 0).all()
        assert 0 <= drawn[0] <= drawn[-1] < E
        np.testing.assert_array_equal(drawn, draw(jax.random.key(seed), odds, count))


@pytest.mark.slow
def test_draws_prefer_heavier_edges_as_one_after_the_other_without_replacement():
    """Frequencies of 20,000 draws of 2 of 4 edges; their standard deviation is at most .0036."""
    weights = np.array([8.0, 4.0, 2.0, 1.0])
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = jax.vmap(lambda key: weighted_graph.draw(key, jnp.log(weights) + 5, 2))(keys)
    chances = weights / weights.sum()
    first_other = chances[None] * chances[:, None] / (1 - chances[:, None])  # j, then i
    np.fill_diagonal(first_other, 0)
    expected = chances + first_other.sum(axis=0)
    assert expected.sum() == pytest.approx(2)
    found = np.bincount(np.asarray(drawn).ravel(), minlength=4) / len(keys)
    np.testing.assert_allclose(found, expected, atol=0.015)


def test_weighted_patterns_propagate():
    rng = np.random.default_rng(2)
    pattern = random_pattern(rng)
    weights, x = rng.normal(size=E).astype(np.float32), rng.normal(size=(M, D)).astype(np.float32)
    built = weighted_graph.weighted(pattern, jnp.asarray(weights))
    found = graph.propagate(built, jnp.asarray(x))
    np.testing.assert_allclose(found, dense(pattern, weights) @ x, atol=1e-5)
