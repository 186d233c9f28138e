"""Products with selected rows of a wide matrix, each row read once.

A batch of 2,048 pairs and their negatives names some 3,000 of 7,050 items, many of them more than
once. On a CPU the distinct rows are read in blocks, so that they stay in cache between the gather
and the product, and nothing is computed for the others. An accelerator gathers the rows of the
batch at once.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

BLOCK = 256  # rows at a time: 4 MB where they are 4,096 wide


@jax.custom_vjp
def project(features: jax.Array, weight: jax.Array, items: jax.Array) -> jax.Array:
    """Compute x W^T for the rows x of a batch of items.

    Shapes: features [I, F], weight W [D, F], items [B] to [B, D]. Sums are in the weight's dtype,
    whatever the dtype of the features. Both get a gradient; the one that is not trained costs
    nothing, as XLA removes unused results.
    """
    return jax.lax.platform_dependent(features, weight, items, cpu=_in_blocks, default=_at_once)


def _forward(features: jax.Array, weight: jax.Array, items: jax.Array) -> tuple:
    return project(features, weight, items), (features, weight, items)


def _backward(kept: tuple, cotangent: jax.Array) -> tuple:
    features, weight, items = kept
    by_platform = functools.partial(jax.lax.platform_dependent, features, items, cotangent)
    weight_gradient = by_platform(cpu=_of_weight_in_blocks, default=_of_weight_at_once)
    features_gradient = jax.lax.platform_dependent(
        features, weight, items, cotangent, cpu=_of_features_in_blocks, default=_of_features_at_once
    )
    return features_gradient, weight_gradient.astype(weight.dtype), None


project.defvjp(_forward, _backward)


def _at_once(features: jax.Array, weight: jax.Array, items: jax.Array) -> jax.Array:
    return jnp.matmul(features[items], weight.T, preferred_element_type=weight.dtype)


def _of_weight_at_once(features: jax.Array, items: jax.Array, cotangent: jax.Array) -> jax.Array:
    return jnp.matmul(cotangent.T, features[items], preferred_element_type=cotangent.dtype)


def _of_features_at_once(
    features: jax.Array, weight: jax.Array, items: jax.Array, cotangent: jax.Array
) -> jax.Array:
    return (_by_item(cotangent, items, features.shape[0]) @ weight).astype(features.dtype)


def _by_item(values: jax.Array, items: jax.Array, count: int) -> jax.Array:
    """Sum the rows [B, D] of each item, to [count, D]."""
    return jnp.zeros((count, values.shape[1]), values.dtype).at[items].add(values)


def _distinct(items: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the distinct items, and positions of the batch among them.

    Returns:
      The distinct items in ascending order, padded with `count` to full blocks; the position of
      each of items [B] among them; and the number of blocks that hold any.
    """
    size = -(-min(items.shape[0], count) // BLOCK) * BLOCK
    present = jnp.zeros(count, jnp.int32).at[items].set(1)
    positions = jnp.cumsum(present) - 1
    rows = jnp.nonzero(present, size=size, fill_value=count)[0].astype(jnp.int32)
    return rows, positions[items], (positions[-1] + BLOCK) // BLOCK


def _over_blocks(
    rows: jax.Array, blocks: jax.Array, start: jax.Array, add: Callable[..., jax.Array]
) -> jax.Array:
    """Fold `add(total, position, block)` over the blocks of rows.

    The fold begins with `start`; `position` is that of a block's first row.
    """

    def step(n: jax.Array, total: jax.Array) -> jax.Array:
        position = n * jnp.int32(BLOCK)
        return add(total, position, jax.lax.dynamic_slice(rows, (position,), (BLOCK,)))

    return jax.lax.fori_loop(jnp.int32(0), blocks.astype(jnp.int32), step, start)


def _read(features: jax.Array, block: jax.Array) -> jax.Array:
    return jnp.take(features, block, axis=0, mode="clip")


def _in_blocks(features: jax.Array, weight: jax.Array, items: jax.Array) -> jax.Array:
    rows, positions, blocks = _distinct(items, features.shape[0])

    def add(total: jax.Array, at: jax.Array, block: jax.Array) -> jax.Array:
        products = jnp.matmul(_read(features, block), weight.T, preferred_element_type=weight.dtype)
        return jax.lax.dynamic_update_slice(total, products, (at, jnp.int32(0)))

    start = jnp.zeros((rows.shape[0], weight.shape[0]), weight.dtype)
    return _over_blocks(rows, blocks, start, add)[positions]


def _of_weight_in_blocks(features: jax.Array, items: jax.Array, cotangent: jax.Array) -> jax.Array:
    rows, positions, blocks = _distinct(items, features.shape[0])
    cotangent = _by_item(cotangent, positions, rows.shape[0])

    def add(total: jax.Array, at: jax.Array, block: jax.Array) -> jax.Array:
        block_cotangent = jax.lax.dynamic_slice(
            cotangent, (at, jnp.int32(0)), (BLOCK, total.shape[0])
        )
        return total + jnp.matmul(
            block_cotangent.T, _read(features, block), preferred_element_type=total.dtype
        )

    start = jnp.zeros((cotangent.shape[1], features.shape[1]), cotangent.dtype)
    return _over_blocks(rows, blocks, start, add)


def _of_features_in_blocks(
    features: jax.Array, weight: jax.Array, items: jax.Array, cotangent: jax.Array
) -> jax.Array:
    rows, positions, blocks = _distinct(items, features.shape[0])
    cotangent = _by_item(cotangent, positions, rows.shape[0])

    def add(total: jax.Array, at: jax.Array, block: jax.Array) -> jax.Array:
        block_cotangent = jax.lax.dynamic_slice(
            cotangent, (at, jnp.int32(0)), (BLOCK, weight.shape[0])
        )
        return total.at[block].set((block_cotangent @ weight).astype(total.dtype), mode="drop")

    return _over_blocks(rows, blocks, jnp.zeros_like(features), add)
