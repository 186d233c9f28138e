"""Bisection in many sorted ranges at once, on device."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def first(
    low: jax.Array, high: jax.Array, before: Callable[[jax.Array], jax.Array], longest: int
) -> jax.Array:
    """The first place of each range [low, high) that does not lie `before`; `high` if all do.

    Args:
      before: whether places lie before what is looked for: true up to some place, then false. It
        is also asked about places outside of the range, and its answer there is not used.
      longest: at least the length of the longest range.
    """

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) // 2
        right = before(middle) & (low < high)
        return jnp.where(right, middle + 1, low), jnp.where(right, high, middle)

    return jax.lax.fori_loop(0, max(1, longest.bit_length()), halve, (low, high))[0]
