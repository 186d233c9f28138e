"""Blocked sums of exp(<x_i, y_j>) over all pairs of rows.

They serve contrastive losses over all items: one block of products is in memory at a time.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from mmjax.parallel import table_sharding

BLOCK = 1024  # rows of a block; one [BLOCK, BLOCK] product is in memory at a time


def row_sums(x: jax.Array, y: jax.Array, weight: jax.Array, shift: jax.Array) -> jax.Array:
    """Return sum_j weight_j exp(x_i . y_j - shift) per row of x.

    Shapes: x [I, D], y [J, D], weight [J] to [I]. Several devices share the rows of x.
    """

    def own(x: jax.Array, y: jax.Array, weight: jax.Array, shift: jax.Array) -> jax.Array:
        @jax.checkpoint
        def sums(rows: jax.Array) -> jax.Array:
            return jnp.exp(rows @ y.T - shift) @ weight  # [B]

        return jax.lax.map(sums, _blocks(x)).reshape(-1)[: x.shape[0]]

    mesh = table_sharding.current_mesh()
    if mesh is None:
        return own(x, y, weight, shift)
    split, replicated = PartitionSpec(table_sharding.AXES), PartitionSpec()
    shared = table_sharding.on_each_device(
        own, mesh, (split, replicated, replicated, replicated), split
    )
    return shared(table_sharding.pad_axis(x, table_sharding.shard_count(mesh)), y, weight, shift)[
        : x.shape[0]
    ]


@jax.custom_vjp
def other_sums(x: jax.Array, weight: jax.Array, shift: jax.Array) -> jax.Array:
    """Return sum_{j != i} weight_j exp(x_i . x_j - shift) per row.

    Shapes: x [I, D], weight [I] to [I]. The summand is symmetric, so each pair of blocks is
    computed once, and the derivative needs one product where that of two factors needs two.
    """
    blocks = _blocks(x), _blocks(weight)
    sums = _over_pairs(_add_sums, jnp.zeros_like(blocks[1]), *blocks, shift)
    return sums.reshape(-1)[: x.shape[0]]


def _add_sums(
    sums: jax.Array, a: jax.Array, b: jax.Array, x: jax.Array, weight: jax.Array, shift: jax.Array
) -> jax.Array:
    values = _values(x, a, b, shift)
    sums = sums.at[a].add(values @ weight[b])
    return sums.at[b].add(jnp.where(a == b, 0, values.T @ weight[a]))


def _forward(*operands: jax.Array) -> tuple[jax.Array, tuple]:
    sums = other_sums(*operands)
    return sums, (*operands, sums)


def _backward(saved: tuple, given: jax.Array) -> tuple[jax.Array, ...]:
    x, weight, shift, sums = saved
    blocks = _blocks(x), _blocks(weight)
    x_gradient = _over_pairs(_add_of_x, jnp.zeros_like(blocks[0]), *blocks, shift, _blocks(given))
    x_gradient = x_gradient.reshape(-1, x.shape[1])[: x.shape[0]]
    return x_gradient, other_sums(x, given, shift), -(given * sums).sum()


def _add_of_x(
    of_x: jax.Array,
    a: jax.Array,
    b: jax.Array,
    x: jax.Array,
    weight: jax.Array,
    shift: jax.Array,
    given: jax.Array,
) -> jax.Array:
    factors = jnp.outer(given[a], weight[b]) + jnp.outer(weight[a], given[b])
    values = factors * _values(x, a, b, shift)
    of_x = of_x.at[a].add(values @ x[b])
    return of_x.at[b].add(jnp.where(a == b, 0, values.T @ x[a]))


other_sums.defvjp(_forward, _backward)


def _values(rows: jax.Array, a: jax.Array, b: jax.Array, shift: jax.Array) -> jax.Array:
    """Return exp(x_i . x_j - shift) for two blocks, [B, B].

    Rows i are those of block a, rows j those of block b; the entry is 0 for i = j.
    """
    values = jnp.exp(rows[a] @ rows[b].T - shift)
    return jnp.where((a == b) & jnp.eye(len(values), dtype=bool), 0, values)


def _blocks(x: jax.Array) -> jax.Array:
    """Reshape rows [I, ...] into blocks [blocks, B, ...].

    The last block is padded with zeros.
    """
    count = -(-len(x) // BLOCK)
    size = -(-len(x) // count)
    x = jnp.pad(x, [(0, count * size - len(x))] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(count, size, *x.shape[1:])


def _over_pairs(add: Callable, total: jax.Array, *operands: jax.Array) -> jax.Array:
    """Fold `add(total, a, b, *operands)` over block pairs a <= b.

    `total` starts at zeros. Several devices share the pairs; each holds all operands.
    """
    mesh = table_sharding.current_mesh()
    devices = 1 if mesh is None else table_sharding.shard_count(mesh)
    pairs = np.stack(np.triu_indices(len(total)), axis=1)
    # A block past the last is added nowhere.
    pairs = np.pad(pairs, ((0, -len(pairs) % devices), (0, 0)), constant_values=len(total))

    def own(pairs: jax.Array | np.ndarray, total: jax.Array, *operands: jax.Array) -> jax.Array:
        def step(total: jax.Array, pair: Any) -> tuple[jax.Array, None]:
            return add(total, *pair, *operands), None

        total, _ = jax.lax.scan(step, total, pairs)
        return total if mesh is None else jax.lax.psum(total, table_sharding.AXES)

    if mesh is None:
        return own(pairs, total, *operands)
    split, replicated = PartitionSpec(table_sharding.AXES), PartitionSpec()
    shared = table_sharding.on_each_device(
        own, mesh, (split, *[replicated] * (1 + len(operands))), replicated
    )
    return shared(jnp.asarray(pairs), total, *operands)
