"""Rows of length one."""

import jax
import jax.numpy as jnp

SHORTEST = 1e-24  # squared length of a row that points anywhere


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Of rows [B, D] one by one, [B]; 0 where a row is zero."""
    return (unit(a) * unit(b)).sum(axis=-1)


def unit(x: jax.Array) -> jax.Array:
    """Divide rows by their length, or by 1e-12 where that is longer, as torch's normalize does.

    Rows of zeros stay zeros, and have a gradient of zero (torch: 1e12 times what comes in).
    """
    squares = jnp.square(x).sum(axis=-1, keepdims=True)
    return x * jnp.where(squares > 0, jax.lax.rsqrt(jnp.maximum(squares, SHORTEST)), 0)
