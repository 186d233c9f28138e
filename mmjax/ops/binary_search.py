"""Binary search in many sorted ranges at once, on the device."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def first(
    low: jax.Array, high: jax.Array, before: Callable[[jax.Array], jax.Array], longest: int
) -> jax.Array:
    """Find the first position of each range that is not `before`.

    Args:
      low, high: the ranges [low, high).
      before: returns whether positions lie before the target: true up to some position, then false.
        It is also called with positions outside of the range; its answer there is not used.
      longest: at least the length of the longest range.

    Returns:
      The positions; `high` where all lie before.
    """

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) // 2
        right = before(middle) & (low < high)
        return jnp.where(right, middle + 1, low), jnp.where(right, high, middle)

    return jax.lax.fori_loop(0, max(1, longest.bit_length()), halve, (low, high))[0]
