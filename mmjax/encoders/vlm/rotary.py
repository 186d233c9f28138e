"""Rotary positions (Su et al. 2021): channels of queries and keys turn by where a token is.

Channel c of the first half of a head and channel c of the second are the two coordinates of one
point, turned by position[axis(c)] x frequency(c). A text has one axis. An image has rows and
columns; a vision-language model gives each token a time, a row and a column (M-RoPE).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

Turn = tuple[jax.Array, jax.Array]  # cosines and sines [B, L, d / 2]


@dataclass(frozen=True)
class Rotary:
    """How a head's d / 2 points turn."""

    frequencies: tuple[float, ...]  # [d / 2] radians a position
    axes: tuple[int, ...]  # [d / 2] the axis whose position turns the point
    scale: float = 1.0  # of cosines and sines, where a longer window was learned afterwards


def frequencies(width: int, theta: float) -> tuple[float, ...]:
    """theta^(-2c / width) for c < width / 2, in float32 as the checkpoints were trained."""
    steps = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    return tuple((1 / np.float32(theta) ** steps).tolist())


def text(width: int, theta: float) -> Rotary:
    """One axis."""
    return Rotary(frequencies(width, theta), (0,) * (width // 2))


def blocks(width: int, theta: float, sections: Sequence[int]) -> Rotary:
    """Qwen2-VL's M-RoPE: the first section of points turns by time, then rows, then columns."""
    return Rotary(
        frequencies(width, theta), tuple(np.repeat(np.arange(len(sections)), sections).tolist())
    )


def interleaved(width: int, theta: float, sections: Sequence[int]) -> Rotary:
    """Qwen3-VL's M-RoPE: time, row, column, time, … as long as rows and columns have points left.

    So all three have slow and quick points; what remains turns by time.
    """
    axes = np.zeros(width // 2, int)
    for axis in (1, 2):
        axes[axis : 3 * sections[axis] : 3] = axis
    return Rotary(frequencies(width, theta), tuple(axes.tolist()))


def grid(width: int, theta: float = 10_000.0) -> Rotary:
    """An image's: half of the points turn by row, half by column, at the same frequencies."""
    half = frequencies(width // 2, theta)
    return Rotary(half * 2, (0,) * len(half) + (1,) * len(half))


def turn(rotary: Rotary, positions: jax.Array) -> Turn:
    """positions: int [B, A, L] along each axis, to cosines and sines [B, L, d / 2] in float32."""
    chosen = jnp.take(positions, np.array(rotary.axes), axis=1).astype(jnp.float32)  # [B, d / 2, L]
    angles = chosen.swapaxes(1, 2) * jnp.array(rotary.frequencies, jnp.float32)[None, None]
    return jnp.cos(angles) * rotary.scale, jnp.sin(angles) * rotary.scale


def rotate(x: jax.Array, by: Turn) -> jax.Array:
    """x: [B, L, H, d]; computed in float32, answered in x's dtype."""
    cos, sin = (part[:, :, None] for part in by)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
