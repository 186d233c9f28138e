"""Dropout and its fast uniform random numbers."""

import jax
import jax.numpy as jnp
import numpy as np


def dropout(key: jax.Array, x: jax.Array, rate: jax.Array | float) -> jax.Array:
    """Set entries to zero with probability `rate`.

    The remaining entries are divided by 1 - rate.
    """
    keep = uniform(key, x.shape, jnp.float32) >= rate
    return jnp.where(keep, x / (1 - rate), 0)


def uniform(key: jax.Array, shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
    """Draw uniform numbers in [0, 1), in steps of 2^-16.

    Two numbers come from one draw of 32 bits. On a CPU, where a draw takes 13 ns, drawing a table
    per layer is otherwise half of the cost of a step.
    """
    width = shape[-1]
    bits = jax.random.bits(key, (*shape[:-1], -(-width // 2)))
    bits = jax.lax.bitcast_convert_type(bits, jnp.uint16)  # [..., width / 2, 2]
    return bits.reshape(*shape[:-1], -1)[..., :width].astype(dtype) / 2**16
