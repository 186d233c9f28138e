"""Image features without a network: colour, layout and texture.

Three descriptors of an image resized to 64 x 64, computed on the device in batches: an 8 x 8
thumbnail in Oklab (layout), a joint Oklab histogram (palette), and histograms of gradient
orientations in 8 x 8 cells (texture). They are standardised over the catalogue, each of the three
with the same weight, and reduced to principal components, half whitened.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from mmjax.encoders.core import Batch, Fitted, Run
from mmjax.encoders.inputs import images

SIDE, CELL = 64, 8
GRID = SIDE // CELL
L_BINS, AB_BINS, ANGLES = 5, 7, 9
BLOCKS = (GRID * GRID * 3, L_BINS * AB_BINS * AB_BINS, GRID * GRID * ANGLES)  # widths of the three
# Oklab (Ottosson 2020): linear sRGB to cone responses, their cube roots to lightness and colour.
CONES = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
OKLAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)


def load(*, width: int = 128) -> Fitted:
    """Build the encoder of at most `width` principal components.

    There are fewer when the catalogue has fewer images.
    """

    def batches(paths: Sequence[str], size: int) -> Iterator[Batch]:
        return images.pixel_batches(paths, size, squeeze, (SIDE, SIDE), draft=(2 * SIDE, 2 * SIDE))

    def fit(paths: Sequence[str], run: Run) -> np.ndarray:
        described = np.zeros((len(paths), sum(BLOCKS)), np.float32)
        is_read = np.zeros(len(paths), bool)
        for rows, values in run(batches, describe, ()):
            described[rows], is_read[rows] = values, True
        features = np.zeros((len(paths), min(width, max(1, is_read.sum() - 1))), np.float32)
        if is_read.any():
            features[is_read] = compress(described[is_read], features.shape[1])
        return features

    return Fitted(
        "image",
        fit,
        {
            "encoder": "plain_image",
            "preprocessing": f"squeezed to {SIDE} x {SIDE}; thumbnail, histogram, gradients",
            "layer": "principal components, half whitened",
            "pooling": "none",
        },
    )


def squeeze(image: Image.Image) -> np.ndarray:
    """Resize an image to uint8 [64, 64, 3] without keeping its shape.

    Each pixel is the mean of those it covers.
    """
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))


@jax.jit
def describe(_: Any, pixels: jax.Array) -> jax.Array:
    """Compute the three descriptors of each image, concatenated.

    Args:
      pixels: uint8 [B, 64, 64, 3].

    Returns:
      [B, 192 + 245 + 576].
    """
    with jax.default_matmul_precision("highest"):
        lab = oklab(pixels.astype(jnp.float32) / 255)
        parts = (thumbnail(lab), palette(lab), gradients(lab[..., 0]))
        return jnp.concatenate([part.reshape(len(pixels), -1) for part in parts], axis=1)


def oklab(rgb: jax.Array) -> jax.Array:
    """Convert sRGB in [0, 1] to Oklab, a perceptual colour space.

    Distances in it are near to what an eye sees.
    """
    linear = jnp.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return jnp.cbrt(linear @ jnp.array(CONES).T) @ jnp.array(OKLAB).T


def thumbnail(lab: jax.Array) -> jax.Array:
    """Return the mean colour of each cell, [B, 8, 8, 3]."""
    return lab.reshape(-1, GRID, CELL, GRID, CELL, 3).mean(axis=(2, 4))


def palette(lab: jax.Array) -> jax.Array:
    """Return the joint histogram [B, 5, 7, 7] of lightness and colour.

    Each pixel is shared by the bins near it. The square root (Hellinger) keeps one large plain
    background from dominating the rest.
    """
    flat = lab.reshape(len(lab), -1, 3)
    shares = (
        _shares(flat[..., 0], 0, 1, L_BINS),
        _shares(flat[..., 1], -0.24, 0.28, AB_BINS),
        _shares(flat[..., 2], -0.32, 0.20, AB_BINS),
    )
    return jnp.sqrt(jnp.einsum("bnl,bnx,bny->blxy", *shares) / flat.shape[1])


def gradients(light: jax.Array) -> jax.Array:
    """Return histograms [B, 8, 8, 9] of gradient orientations, weighted by steepness.

    Args:
      light: lightness [B, 64, 64].
    """
    padded = jnp.pad(light, ((0, 0), (1, 1), (1, 1)), mode="edge")
    dy = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    dx = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    # Unsigned: light on dark and dark on light are the same texture.
    orientation = jnp.arctan2(dy, dx) / jnp.pi % 1 * ANGLES
    distances = _distances(orientation, ANGLES)
    share = jnp.maximum(0, 1 - jnp.minimum(distances, ANGLES - distances))
    cells = (share * jnp.hypot(dx, dy)[..., None]).reshape(-1, GRID, CELL, GRID, CELL, ANGLES)
    return jnp.sqrt(cells.mean(axis=(2, 4)))


def compress(described: np.ndarray, width: int) -> np.ndarray:
    """Reduce descriptors [n, R] to `width` principal components [n, F].

    Descriptors are standardised, each block with the same weight. Components are divided by the
    fourth root of their variance, half way to whitening: neighbours in MovieLens posters share more
    genres that way than with none of it or all. The root mean square of the rows' lengths is 1. The
    largest loading of each component is made positive: the same catalogue always gives the same
    numbers.
    """
    values = described - described.mean(axis=0)
    scale = values.std(axis=0)
    # A floor on the scale keeps nearly empty bins from getting the weight of the others.
    floor = np.concatenate(
        [np.full(len(block), 0.1 * block.max(initial=0)) for block in _blocks(scale)]
    )
    weight = np.concatenate([np.full(n, n**-0.5) for n in BLOCKS]).astype(np.float32)
    values = values / np.maximum(np.maximum(scale, floor), 1e-12).astype(np.float32) * weight
    covariance = values.T.astype(np.float64) @ values / max(1, len(values))
    variances, loadings = np.linalg.eigh(covariance)
    variances, loadings = variances[::-1][:width], loadings[:, ::-1][:, :width]
    largest = np.take_along_axis(loadings, np.abs(loadings).argmax(axis=0)[None], axis=0)
    kept = variances > 1e-9 * max(variances[0], 1e-30)
    variances = np.where(kept, variances, 1)
    loadings = loadings * np.sign(largest) * kept * variances**-0.25
    reduced = values @ loadings
    length = np.sqrt((reduced**2).sum(axis=1).mean())
    return (reduced / max(length, 1e-12)).astype(np.float32)


def _shares(values: jax.Array, low: float, high: float, bins: int) -> jax.Array:
    """Split values linearly between the two nearest bin centres, [..., bins]."""
    position = jnp.clip((values - low) / (high - low), 0, 1) * (bins - 1)
    return jnp.maximum(0, 1 - _distances(position, bins))


def _distances(places: jax.Array, bins: int) -> jax.Array:
    """Return the distance of each place to each bin.

    Bins are 0, 1, …; the result is [..., bins].
    """
    return jnp.abs(places[..., None] - jnp.arange(bins).reshape((1,) * places.ndim + (bins,)))


def _blocks(vector: np.ndarray) -> list[np.ndarray]:
    return np.split(vector, np.cumsum(BLOCKS)[:-1])
