"""Images from files to batches of pixels: decoded by threads, ahead of the device."""

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
from mmjax.encoders.inputs.pixels import Options, Pixels

# Pillow's decoders raise nearly anything on a damaged file.
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, TypeError, IndexError)
Shape = tuple[int, int]


def tower(
    graph: nnx.GraphDef,
    params: Any,
    forward: Callable[[nnx.Module, jax.Array], outputs.Outputs],
    *,
    folder: Path,
    options: Options,
    pixels: Pixels | None = None,
    layers: Sequence[str | int] = (),
    default: str,
    pooling: str = "mean",
    about: dict[str, Any],
) -> Tower:
    """A Tower that reads image files as the checkpoint's image processor does.

    Args:
      forward: (module, pixels [B, H, W, 3]) to the outputs by name.
      folder: with preprocessor_config.json; `pixels` where it has none.

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
    options: Options = Options(),
    draft: Shape | None = None,
) -> Iterator[Batch]:
    """Batches of uint8 [B, H, W, 3] in the order of `paths`, `make` of each RGB image.

    Images that cannot be read are left out and reported with the batch they belonged to.
    """
    for rows, made, failed in decoded(paths, size, make, options, draft):
        pixels = np.stack(made) if made else np.zeros((0, *shape, 3), np.uint8)
        yield Batch(rows, (pad_to(pixels, size),), failed)


def decoded(
    paths: Sequence[str],
    size: int,
    make: Callable[[Image.Image], Any],
    options: Options = Options(),
    draft: Shape | None = None,
) -> Iterator[tuple[np.ndarray, list[Any], dict[int, str]]]:
    """For each `size` paths: positions that could be read, what `make` made of them, and failures.

    Threads decode; failures are position -> why.
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
            made = list(pool.map(one, paths[start : start + size]))
            rows = [i for i, image in enumerate(made) if not isinstance(image, str)]
            failed = {start + i: why for i, why in enumerate(made) if isinstance(why, str)}
            yield start + np.array(rows, int), [made[i] for i in rows], failed


def read(path: str, max_pixels: int, draft: Shape | None = None) -> Image.Image:
    """An image as RGB, turned as its EXIF says, transparency laid on white as a browser does.

    Args:
      draft: JPEGs may shrink while they decode, to no less than this (height, width): much
        faster, but not what a resize of the whole image gives.
    """
    with storage.open_file(path) as file, Image.open(file) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise ValueError(f"{width} x {height} pixels are more than the limit of {max_pixels:,}")
        if draft:
            image.draft("RGB", draft[::-1])
        image = ImageOps.exif_transpose(image)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        return image.convert("RGB")
