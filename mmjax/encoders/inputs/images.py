"""Read image files into batches of pixels.

Threads decode the files while the device computes.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image, ImageOps

from mmjax.core import storage
from mmjax.encoders import outputs
from mmjax.encoders.core import Batch, Tower, pad_to
from mmjax.encoders.inputs.pixels import ImageOptions, Pixels

# Pillow's decoders raise nearly anything on a damaged file.
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, TypeError, IndexError)
Shape = tuple[int, int]


def tower(
    graph: nnx.GraphDef,
    params: Any,
    forward: Callable[..., outputs.Outputs],
    *,
    folder: Path,
    options: ImageOptions,
    pixels: Pixels | None = None,
    layers: Sequence[str | int] = (),
    default: str,
    pooling: str = "mean",
    about: dict[str, Any],
) -> Tower:
    """Return a Tower that reads image files.

    Files are prepared as by the checkpoint's image processor.

    Args:
      forward: (module, pixels [B, H, W, 3]) -> the outputs by name.
      folder: has preprocessor_config.json; `pixels` is used if it has none.

    Raises:
      InputError: what `Pixels.read` and `outputs.tower` raise.
    """
    pixels = Pixels.read(folder, options, pixels)
    dtype = jax.tree.leaves(params)[0].dtype

    def run(module: nnx.Module, raw: jax.Array) -> tuple[outputs.Outputs, None]:
        return forward(module, pixels.normalize(raw).astype(dtype)), None

    def batches(paths: Sequence[str], size: int) -> Iterator[Batch]:
        return pixel_batches(paths, size, pixels.apply, pixels.size, options)

    return outputs.tower(
        "image",
        graph,
        params,
        run,
        batches=batches,
        example=(jax.ShapeDtypeStruct((1, *pixels.size, 3), jnp.uint8),),
        layers=layers,
        default=default,
        pooling=pooling,
        about={**about, "preprocessing": str(pixels)},
    )


def pixel_batches(
    paths: Sequence[str],
    size: int,
    make: Callable[[Image.Image], np.ndarray],
    shape: Shape,
    options: ImageOptions = ImageOptions(),
    draft: Shape | None = None,
) -> Iterator[Batch]:
    """Yield batches of pixels uint8 [B, H, W, 3].

    They are in the order of `paths`. `make` turns each RGB image into its pixels. Images that
    cannot be read are left out and reported with the batch they belonged to.
    """
    for rows, arrays, failed in decoded(paths, size, make, options, draft):
        pixels = np.stack(arrays) if arrays else np.zeros((0, *shape, 3), np.uint8)
        yield Batch(rows, (pad_to(pixels, size),), failed)


def decoded(
    paths: Sequence[str],
    size: int,
    make: Callable[[Image.Image], Any],
    options: ImageOptions = ImageOptions(),
    draft: Shape | None = None,
) -> Iterator[tuple[np.ndarray, list[Any], dict[int, str]]]:
    """Yield positions, results of `make` and failures per `size` paths.

    Positions are of the images that could be read; failures are position -> reason. Threads decode.
    """

    def one(path: str) -> Any:
        try:
            return make(read(path, options.max_pixels, draft))
        except FileNotFoundError:
            return "no such file"
        except Image.UnidentifiedImageError:
            return "not an image"
        except (*DAMAGE, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            return str(error) or type(error).__name__

    with ThreadPoolExecutor(options.workers or os.cpu_count()) as pool:
        for start in range(0, len(paths), size):
            results = list(pool.map(one, paths[start : start + size]))
            rows = [i for i, image in enumerate(results) if not isinstance(image, str)]
            failed = {start + i: why for i, why in enumerate(results) if isinstance(why, str)}
            yield start + np.array(rows, int), [results[i] for i in rows], failed


def read(path: str, max_pixels: int, draft: Shape | None = None) -> Image.Image:
    """Read an image as RGB, rotated by its EXIF orientation.

    Transparent pixels are laid on white, as a browser does.

    Args:
      draft: JPEGs may shrink while they decode, to no less than this (height, width): much
        faster, but not what a resize of the whole image gives.
    """
    with storage.open_file(path) as file, Image.open(file) as opened:
        width, height = opened.size
        if width * height > max_pixels:
            raise ValueError(f"{width} x {height} pixels are more than the limit of {max_pixels:,}")
        if draft:
            opened.draft("RGB", draft[::-1])
        image = ImageOps.exif_transpose(opened)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        return image.convert("RGB")
