"""Rotary position embeddings (RoPE) for text, images and M-RoPE.

Su et al. 2021: queries and keys are rotated by the position of their token. Channel c of the first
half of a head and channel c of the second half are the two coordinates of one point. It is rotated
by position[axis(c)] x frequency(c). Text has one axis. An image has rows and columns. A
vision-language model gives each token a time, a row and a column (M-RoPE).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

Turn = tuple[jax.Array, jax.Array]  # cosines and sines [B, L, d / 2]


@dataclass(frozen=True)
class Rotary:
    """Rotation of the d / 2 points of a head."""

    frequencies: tuple[float, ...]  # [d / 2] radians a position
    axes: tuple[int, ...]  # [d / 2] the axis whose position rotates the point
    scale: float = 1.0  # of cosines and sines; not 1 where a longer window was learned later


def frequencies(width: int, theta: float) -> tuple[float, ...]:
    """Compute the rotary frequencies of a head.

    theta^(-2c / width) for c < width / 2, in float32 as the checkpoints were trained.
    """
    steps = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    return tuple((1 / np.float32(theta) ** steps).tolist())


def text(width: int, theta: float) -> Rotary:
    """Build the rotary positions of text, with one axis."""
    return Rotary(frequencies(width, theta), (0,) * (width // 2))


def blocks(width: int, theta: float, sections: Sequence[int]) -> Rotary:
    """Build Qwen2-VL's M-RoPE, with one block of points an axis.

    The first section of points is rotated by time, the second by rows, the third by columns.
    """
    return Rotary(
        frequencies(width, theta), tuple(np.repeat(np.arange(len(sections)), sections).tolist())
    )


def interleaved(width: int, theta: float, sections: Sequence[int]) -> Rotary:
    """Build Qwen3-VL's M-RoPE, with interleaved axes.

    The points take time, row, column, time, … until rows and columns have no points left; the
    remaining points take time. So all three axes have low and high frequencies.
    """
    axes = np.zeros(width // 2, int)
    for axis in (1, 2):
        axes[axis : 3 * sections[axis] : 3] = axis
    return Rotary(frequencies(width, theta), tuple(axes.tolist()))


def grid(width: int, theta: float = 10_000.0) -> Rotary:
    """Build the rotary positions of an image.

    Half of the points are rotated by row, half by column, at the same frequencies.
    """
    half = frequencies(width // 2, theta)
    return Rotary(half * 2, (0,) * len(half) + (1,) * len(half))


def turn(rotary: Rotary, positions: jax.Array) -> Turn:
    """Compute the cosines and sines of positions.

    Args:
      rotary: the rotation of a head.
      positions: int [B, A, L], along each of A axes.

    Returns:
      Cosines and sines, float32 [B, L, d / 2].
    """
    chosen = jnp.take(positions, np.array(rotary.axes), axis=1).astype(jnp.float32)  # [B, d / 2, L]
    angles = chosen.swapaxes(1, 2) * jnp.array(rotary.frequencies, jnp.float32)[None, None]
    return jnp.cos(angles) * rotary.scale, jnp.sin(angles) * rotary.scale


def rotate(x: jax.Array, by: Turn) -> jax.Array:
    """Rotate queries or keys by their positions.

    Args:
      x: [B, L, H, d].
      by: cosines and sines.

    Returns:
      [B, L, H, d] in x's dtype; computed in float32.
    """
    cos, sin = (part[:, :, None] for part in by)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
