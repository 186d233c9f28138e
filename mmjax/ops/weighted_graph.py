"""Graphs whose edges or weights change during training.

Edges are drawn, pruned or learned. A `Pattern` holds the positions of the edges of a sparse matrix
A [N, M], both by row and by column; the weights are a separate array [E] in the order of the rows.
Everything runs on the device, so that an epoch can draw a new graph and a loss can differentiate
through the weights.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.unique import distinct
from mmjax.ops.graph import Graph
from mmjax.ops.sparse import Csr, multiply

BLOCK = 2048  # edges whose rows a CPU reads at a time


class Side(NamedTuple):
    """Edge positions, sorted by row."""

    rows: jax.Array  # [E] int32, ascending
    columns: jax.Array  # [E] int32
    starts: jax.Array  # [N + 1] int32
    order: jax.Array  # [E] int32: position of each edge of this side on the other side


class Pattern(NamedTuple):
    """Edges of a matrix [N, M] by row, and of its transpose."""

    forward: Side
    transpose: Side

    @property
    def shape(self) -> tuple[int, int]:
        return self.forward.starts.shape[0] - 1, self.transpose.starts.shape[0] - 1

    def flip(self) -> "Pattern":
        """Return the pattern of the transposed matrix.

        The weights of the transpose are `weights[pattern.transpose.order]`.
        """
        return Pattern(self.transpose, self.forward)


def pattern(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> Pattern:
    """Build the pattern of the distinct pairs (row, column).

    Runs on the host; the arrays stay in NumPy.
    """
    pairs = distinct(np.asarray(rows, np.int64) * shape[1] + np.asarray(columns, np.int64))
    rows, columns = (x.astype(np.int32) for x in np.divmod(pairs, shape[1]))
    order = np.lexsort((rows, columns)).astype(np.int32)
    back = np.empty_like(order)
    back[order] = np.arange(len(order), dtype=np.int32)

    def side(rows: Any, columns: Any, count: int, order: Any) -> Side:
        starts: Any = np.searchsorted(rows, np.arange(count + 1)).astype(np.int32)
        return Side(rows, columns, starts, order)

    return Pattern(
        side(rows, columns, shape[0], back), side(columns[order], rows[order], shape[1], order)
    )


def of_neighbours(columns: jax.Array, count: int) -> Pattern:
    """Build the pattern of k edges per row, on the device.

    Args:
      columns: int [N, k], the column of each edge.
      count: number of columns M.
    """
    n, k = columns.shape
    rows = jnp.repeat(jnp.arange(n, dtype=jnp.int32), k)
    columns = columns.reshape(-1).astype(jnp.int32)
    order = jnp.argsort(columns, stable=True).astype(jnp.int32)
    back = jnp.zeros_like(order).at[order].set(jnp.arange(n * k, dtype=jnp.int32))
    forward = Side(rows, columns, jnp.arange(n + 1, dtype=jnp.int32) * k, back)
    return Pattern(forward, _side(columns[order], rows[order], count, order))


def keep(whole: Pattern, edges: jax.Array) -> Pattern:
    """Return the pattern of a subset of the edges.

    Args:
      whole: pattern with E edges.
      edges: int [K], the edges to keep, in ascending order.
    """
    forward, transpose = whole
    by_column = jnp.sort(forward.order[edges])  # the same edges by column
    zeros = jnp.zeros(forward.rows.shape, jnp.int32)
    positions = jnp.arange(edges.shape[0], dtype=jnp.int32)
    order = zeros.at[edges].set(positions)[transpose.order[by_column]]
    back = zeros.at[by_column].set(positions)[forward.order[edges]]
    rows, columns = whole.shape
    return Pattern(
        _side(forward.rows[edges], forward.columns[edges], rows, back),
        _side(transpose.rows[by_column], transpose.columns[by_column], columns, order),
    )


def _side(rows: jax.Array, columns: jax.Array, count: int, order: jax.Array) -> Side:
    starts = jnp.searchsorted(rows, jnp.arange(count + 1, dtype=rows.dtype)).astype(jnp.int32)
    return Side(rows, columns, starts, order)


def degrees(pattern: Pattern) -> tuple[jax.Array, jax.Array]:
    """Count the edges of every row [N] and every column [M]."""
    return jnp.diff(pattern.forward.starts), jnp.diff(pattern.transpose.starts)


def symmetric(pattern: Pattern, eps: float, dtype: np.dtype) -> jax.Array:
    """Compute the edge weights [E] of D^-1/2 A D^-1/2.

    The degrees D are those of the pattern, plus `eps`.
    """
    row_scale, column_scale = (jax.lax.rsqrt(d.astype(dtype) + eps) for d in degrees(pattern))
    return row_scale[pattern.forward.rows] * column_scale[pattern.forward.columns]


def draw(key: jax.Array, log_odds: jax.Array, count: int) -> jax.Array:
    """Draw `count` of E edges without replacement.

    Edges are drawn one by one in proportion to exp(log_odds). The largest `count` of log_odds +
    Gumbel noise have this distribution (Vieira 2014; Kool et al. 2019): torch's multinomial without
    a loop.

    Returns:
      Edges int [count], in ascending order.
    """
    noise = jax.random.gumbel(key, log_odds.shape, log_odds.dtype)
    return jnp.sort(jnp.argsort(-(log_odds + noise))[:count])


def weighted(pattern: Pattern, weights: jax.Array) -> Graph:
    """Build a graph with the given edge weights [E].

    It is for `graph.propagate`, which gives the weights no gradient.
    """
    forward, transpose = pattern
    return Graph(
        Csr(weights, forward.columns, forward.starts, forward.rows),
        Csr(weights[transpose.order], transpose.columns, transpose.starts, transpose.rows),
    )


@jax.custom_vjp
def aggregate(pattern: Pattern, weights: jax.Array, x: jax.Array) -> jax.Array:
    """Multiply A x with gradients for x and the weights of A.

    Shapes: A [N, M] with weights [E], x [M, D] to [N, D].
    """
    return multiply(weighted(pattern, weights).forward, x)


def _forward(pattern: Pattern, weights: jax.Array, x: jax.Array) -> tuple:
    return aggregate(pattern, weights, x), (pattern, weights, x)


def _backward(kept: tuple, cotangent: jax.Array) -> tuple:
    pattern, weights, x = kept
    x_gradient = multiply(weighted(pattern, weights).transpose, cotangent)
    return None, products(pattern, cotangent, x), x_gradient


aggregate.defvjp(_forward, _backward)


@jax.custom_vjp
def products(pattern: Pattern, x: jax.Array, y: jax.Array) -> jax.Array:
    """Compute <x_n, y_m> for every edge (n, m).

    Shapes: x [N, D], y [M, D] to [E]. The derivative is two sparse products. On a CPU the edges go
    in blocks, so that their rows are read once and stay in cache and [E, D] is never in memory.
    """
    rows, columns = pattern.forward.rows, pattern.forward.columns
    return jax.lax.platform_dependent(rows, columns, x, y, cpu=_in_blocks, default=_at_once)


def _at_once(rows: jax.Array, columns: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    return (x[rows] * y[columns]).sum(axis=-1)


def _in_blocks(rows: jax.Array, columns: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    count = rows.shape[0]
    blocks = [jnp.pad(a, (0, -count % BLOCK)).reshape(-1, BLOCK) for a in (rows, columns)]
    values = jax.lax.map(lambda ends: _at_once(ends[0], ends[1], x, y), tuple(blocks))
    return values.reshape(-1)[:count]


def _products_forward(pattern: Pattern, x: jax.Array, y: jax.Array) -> tuple:
    return products(pattern, x, y), (pattern, x, y)


def _products_backward(kept: tuple, cotangent: jax.Array) -> tuple:
    pattern, x, y = kept
    graph = weighted(pattern, cotangent)
    return None, multiply(graph.forward, y), multiply(graph.transpose, x)


products.defvjp(_products_forward, _products_backward)


def softmax(pattern: Pattern, logits: jax.Array) -> jax.Array:
    """Normalise logits [E] by a softmax over each row's edges."""
    rows, count = pattern.forward.rows, pattern.shape[0]
    options: dict[str, Any] = {"num_segments": count, "indices_are_sorted": True}
    largest = jax.lax.stop_gradient(jax.ops.segment_max(logits, rows, **options))
    shares = jnp.exp(logits - largest[rows])
    return shares / jax.ops.segment_sum(shares, rows, **options)[rows]
