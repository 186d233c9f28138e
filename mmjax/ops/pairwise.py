"""Sums of exp(<x_i, y_j>) over all pairs of rows, a block at a time, for contrasts of all items."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from mmjax.parallel import table_sharding

BLOCK = 1024  # rows whose products with as many others are in memory at once


def row_sums(x: jax.Array, y: jax.Array, weight: jax.Array, shift: jax.Array) -> jax.Array:
    """sum_j weight_j exp(x_i . y_j - shift) for every row i of x [I]; devices share the rows."""

    def own(x: jax.Array, y: jax.Array, weight: jax.Array, shift: jax.Array) -> jax.Array:
        @jax.checkpoint
        def sums(rows: jax.Array) -> jax.Array:
            return jnp.exp(rows @ y.T - shift) @ weight  # [B]

        return jax.lax.map(sums, _blocks(x)).reshape(-1)[: x.shape[0]]

    mesh = table_sharding.current_mesh()
    if mesh is None:
        return own(x, y, weight, shift)
    split, whole = PartitionSpec(table_sharding.AXES), PartitionSpec()
    shared = table_sharding.on_each_device(own, mesh, (split, whole, whole, whole), split)
    return shared(table_sharding.pad_axis(x, table_sharding.shard_count(mesh)), y, weight, shift)[
        : x.shape[0]
    ]


@jax.custom_vjp
def other_sums(x: jax.Array, weight: jax.Array, shift: jax.Array) -> jax.Array:
    """sum_{j != i} weight_j exp(x_i . x_j - shift) for every row i of x [I].

    What is summed is symmetric, so that each pair of blocks is computed once, and its derivative
    needs one product where that of two factors needs two.
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
    of_x = _over_pairs(_add_of_x, jnp.zeros_like(blocks[0]), *blocks, shift, _blocks(given))
    of_x = of_x.reshape(-1, x.shape[1])[: x.shape[0]]
    return of_x, other_sums(x, given, shift), -(given * sums).sum()


def _add_of_x(
    of_x: jax.Array,
    a: jax.Array,
    b: jax.Array,
    x: jax.Array,
    weight: jax.Array,
    shift: jax.Array,
    given: jax.Array,
) -> jax.Array:
    both = jnp.outer(given[a], weight[b]) + jnp.outer(weight[a], given[b])
    values = both * _values(x, a, b, shift)
    of_x = of_x.at[a].add(values @ x[b])
    return of_x.at[b].add(jnp.where(a == b, 0, values.T @ x[a]))


other_sums.defvjp(_forward, _backward)


def _values(rows: jax.Array, a: jax.Array, b: jax.Array, shift: jax.Array) -> jax.Array:
    """exp(x_i . x_j - shift), 0 for i = j, of the rows of blocks a and b [B, B]."""
    values = jnp.exp(rows[a] @ rows[b].T - shift)
    return jnp.where((a == b) & jnp.eye(len(values), dtype=bool), 0, values)


def _blocks(x: jax.Array) -> jax.Array:
    """Rows [I, ...] as blocks of them [blocks, B, ...], the last one filled up with zeros."""
    count = -(-len(x) // BLOCK)
    size = -(-len(x) // count)
    x = jnp.pad(x, [(0, count * size - len(x))] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(count, size, *x.shape[1:])


def _over_pairs(add: Callable, total: jax.Array, *operands: jax.Array) -> jax.Array:
    """What `add(total, a, b, *operands)` makes of `total`, zeros, over all a <= b of its rows.

    Several devices share the pairs, each with the operands whole.
    """
    mesh = table_sharding.current_mesh()
    many = 1 if mesh is None else table_sharding.shard_count(mesh)
    pairs = np.stack(np.triu_indices(len(total)), axis=1)
    # A block past the last is added nowhere.
    pairs = np.pad(pairs, ((0, -len(pairs) % many), (0, 0)), constant_values=len(total))

    def own(pairs: jax.Array, total: jax.Array, *operands: jax.Array) -> jax.Array:
        def step(total, pair):
            return (add(total, *pair, *operands), None)

        total, _ = jax.lax.scan(step, total, pairs)
        return total if mesh is None else jax.lax.psum(total, table_sharding.AXES)

    if mesh is None:
        return own(pairs, total, *operands)
    split, whole = PartitionSpec(table_sharding.AXES), PartitionSpec()
    shared = table_sharding.on_each_device(
        own, mesh, (split, *[whole] * (1 + len(operands))), whole
    )
    return shared(jnp.asarray(pairs), total, *operands)
