"""Normalisation of rows to unit length, and cosines of rows."""

import jax
import jax.numpy as jnp

SHORTEST = 1e-24  # least squared length to divide by


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Compute the cosines of paired rows, [B, D] to [B].

    The cosine is 0 where a row is zero.
    """
    return (unit(a) * unit(b)).sum(axis=-1)


def unit(x: jax.Array) -> jax.Array:
    """Divide rows by their Euclidean length.

    The divisor is at least 1e-12, as in torch's normalize. Rows of zeros stay zeros and have a
    gradient of zero (torch: 1e12 times the incoming gradient).
    """
    squares = jnp.square(x).sum(axis=-1, keepdims=True)
    return x * jnp.where(squares > 0, jax.lax.rsqrt(jnp.maximum(squares, SHORTEST)), 0)
