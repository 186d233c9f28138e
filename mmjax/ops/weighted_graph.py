"""Graphs whose edges or weights change while training: drawn, pruned, learned.

A `Pattern` says where the edges of a sparse matrix A [N, M] are, both by row and by column; their
weights are an array [E] of its own, in the order of the rows. All of it runs on the device, so that
an epoch can draw a new graph and a loss can differentiate through weights.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.unique import distinct
from mmjax.ops.graph import Graph
from mmjax.ops.sparse import Csr, multiply

BLOCK = 2048  # edges whose rows a CPU reads at once


class Side(NamedTuple):
    """Where the edges are, sorted by row."""

    rows: jax.Array  # [E] int32, ascending
    columns: jax.Array  # [E] int32
    starts: jax.Array  # [N + 1] int32
    order: jax.Array  # [E] int32: the place of each edge of this side on the other side


class Pattern(NamedTuple):
    """Edges of a matrix [N, M] by row, and of its transpose."""

    forward: Side
    transpose: Side

    @property
    def shape(self) -> tuple[int, int]:
        return self.forward.starts.shape[0] - 1, self.transpose.starts.shape[0] - 1

    def flip(self) -> "Pattern":
        """Of the transposed matrix; weights go along by `weights[pattern.transpose.order]`."""
        return Pattern(self.transpose, self.forward)


def pattern(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> Pattern:
    """Of the distinct pairs (row, column), on the host; arrays stay in NumPy."""
    pairs = distinct(np.asarray(rows, np.int64) * shape[1] + np.asarray(columns, np.int64))
    rows, columns = (x.astype(np.int32) for x in np.divmod(pairs, shape[1]))
    order = np.lexsort((rows, columns)).astype(np.int32)
    back = np.empty_like(order)
    back[order] = np.arange(len(order), dtype=np.int32)

    def side(rows: np.ndarray, columns: np.ndarray, count: int, order: np.ndarray) -> Side:
        starts = np.searchsorted(rows, np.arange(count + 1)).astype(np.int32)
        return Side(rows, columns, starts, order)

    return Pattern(
        side(rows, columns, shape[0], back), side(columns[order], rows[order], shape[1], order)
    )


def of_neighbours(columns: jax.Array, count: int) -> Pattern:
    """Of k edges a row, `columns` int [N, k], to `count` columns; sorted on the device."""
    n, k = columns.shape
    rows = jnp.repeat(jnp.arange(n, dtype=jnp.int32), k)
    columns = columns.reshape(-1).astype(jnp.int32)
    order = jnp.argsort(columns, stable=True).astype(jnp.int32)
    back = jnp.zeros_like(order).at[order].set(jnp.arange(n * k, dtype=jnp.int32))
    forward = Side(rows, columns, jnp.arange(n + 1, dtype=jnp.int32) * k, back)
    return Pattern(forward, _side(columns[order], rows[order], count, order))


def keep(whole: Pattern, edges: jax.Array) -> Pattern:
    """The pattern of some edges alone: int [K] in ascending order."""
    forward, transpose = whole
    there = jnp.sort(forward.order[edges])  # the same edges by column
    new = jnp.zeros(forward.rows.shape, jnp.int32)
    count = jnp.arange(edges.shape[0], dtype=jnp.int32)
    order = new.at[edges].set(count)[transpose.order[there]]
    back = new.at[there].set(count)[forward.order[edges]]
    rows, columns = whole.shape
    return Pattern(
        _side(forward.rows[edges], forward.columns[edges], rows, back),
        _side(transpose.rows[there], transpose.columns[there], columns, order),
    )


def _side(rows: jax.Array, columns: jax.Array, count: int, order: jax.Array) -> Side:
    starts = jnp.searchsorted(rows, jnp.arange(count + 1, dtype=rows.dtype)).astype(jnp.int32)
    return Side(rows, columns, starts, order)


def degrees(pattern: Pattern) -> tuple[jax.Array, jax.Array]:
    """Edges of every row [N] and of every column [M]."""
    return jnp.diff(pattern.forward.starts), jnp.diff(pattern.transpose.starts)


def symmetric(pattern: Pattern, eps: float, dtype: np.dtype) -> jax.Array:
    """The weight of every edge in D^-1/2 A D^-1/2 with degrees + eps, [E]."""
    of_row, of_column = (jax.lax.rsqrt(d.astype(dtype) + eps) for d in degrees(pattern))
    return of_row[pattern.forward.rows] * of_column[pattern.forward.columns]


def draw(key: jax.Array, log_odds: jax.Array, count: int) -> jax.Array:
    """`count` of E edges without replacement, in ascending order, int [count].

    One by one in proportion to exp(log_odds), which is what the largest of log_odds + Gumbel noise
    are (Vieira 2014; Kool et al. 2019): torch's multinomial without a loop.
    """
    noise = jax.random.gumbel(key, log_odds.shape, log_odds.dtype)
    return jnp.sort(jnp.argsort(-(log_odds + noise))[:count])


def weighted(pattern: Pattern, weights: jax.Array) -> Graph:
    """A graph with these weights [E], for `graph.propagate`, which gives them no gradient."""
    forward, transpose = pattern
    return Graph(
        Csr(weights, forward.columns, forward.starts, forward.rows),
        Csr(weights[transpose.order], transpose.columns, transpose.starts, transpose.rows),
    )


@jax.custom_vjp
def aggregate(pattern: Pattern, weights: jax.Array, x: jax.Array) -> jax.Array:
    """A x, [N, M] times [M, D], where the weights [E] of A get their gradient too."""
    return multiply(weighted(pattern, weights).forward, x)


def _forward(pattern: Pattern, weights: jax.Array, x: jax.Array) -> tuple:
    return aggregate(pattern, weights, x), (pattern, weights, x)


def _backward(kept: tuple, cotangent: jax.Array) -> tuple:
    pattern, weights, x = kept
    of_x = multiply(weighted(pattern, weights).transpose, cotangent)
    return None, products(pattern, cotangent, x), of_x


aggregate.defvjp(_forward, _backward)


@jax.custom_vjp
def products(pattern: Pattern, x: jax.Array, y: jax.Array) -> jax.Array:
    """<x_n, y_m> of every edge (n, m), [E]; rows x [N, D] and y [M, D].

    Its derivative is two sparse products. On a CPU some edges are looked at after the others, so
    that their rows are read once and stay in cache; [E, D] is never in memory.
    """
    rows, columns = pattern.forward.rows, pattern.forward.columns
    return jax.lax.platform_dependent(rows, columns, x, y, cpu=_in_blocks, default=_at_once)


def _at_once(rows: jax.Array, columns: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    return (x[rows] * y[columns]).sum(axis=-1)


def _in_blocks(rows: jax.Array, columns: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    count = rows.shape[0]
    blocks = [jnp.pad(a, (0, -count % BLOCK)).reshape(-1, BLOCK) for a in (rows, columns)]
    return jax.lax.map(lambda ends: _at_once(*ends, x, y), tuple(blocks)).reshape(-1)[:count]


def _products_forward(pattern: Pattern, x: jax.Array, y: jax.Array) -> tuple:
    return products(pattern, x, y), (pattern, x, y)


def _products_backward(kept: tuple, cotangent: jax.Array) -> tuple:
    pattern, x, y = kept
    both = weighted(pattern, cotangent)
    return None, multiply(both.forward, y), multiply(both.transpose, x)


products.defvjp(_products_forward, _products_backward)


def softmax(pattern: Pattern, logits: jax.Array) -> jax.Array:
    """Of each row's edges among themselves, [E]; logits [E]."""
    rows, count = pattern.forward.rows, pattern.shape[0]
    kinds = {"num_segments": count, "indices_are_sorted": True}
    largest = jax.lax.stop_gradient(jax.ops.segment_max(logits, rows, **kinds))
    shares = jnp.exp(logits - largest[rows])
    return shares / jax.ops.segment_sum(shares, rows, **kinds)[rows]
