"""Images from files to batches of pixels: decoded by threads, ahead of the device."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, ImageOps

from mmjax.encoders.core import Batch, pad_to

DAMAGE = (OSError, ValueError, SyntaxError, EOFError, TypeError, IndexError)


def read_square(path: str, side: int) -> np.ndarray | str:
    """One image as uint8 [side, side, 3], squeezed to a square; or why it cannot be read.

    EXIF rotation is applied and transparency laid on white, as a browser would show it.
    """
    try:
        with Image.open(path) as image:
            # JPEGs shrink while they decode, to no less than twice the side: much faster.
            image.draft("RGB", (2 * side, 2 * side))
            image = ImageOps.exif_transpose(image)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            image = image.convert("RGB")
            return np.asarray(image.resize((side, side), Image.Resampling.BOX))
    except FileNotFoundError:
        return "no such file"
    except Image.UnidentifiedImageError:
        return "not an image"
    # Pillow's decoders raise nearly anything on a damaged file.
    except (*DAMAGE, Image.DecompressionBombError) as error:
        return str(error) or type(error).__name__


def pixel_batches(
    paths: Sequence[str], size: int, side: int, workers: int | None = None
) -> Iterator[Batch]:
    """Batches of uint8 [B, side, side, 3] in the order of `paths`.

    Images that cannot be read are left out and reported with the batch they belonged to.
    """
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        for start in range(0, len(paths), size):
            chunk = paths[start : start + size]
            read = list(pool.map(lambda path: read_square(path, side), chunk))
            rows = [i for i, image in enumerate(read) if not isinstance(image, str)]
            failed = {start + i: why for i, why in enumerate(read) if isinstance(why, str)}
            pixels = np.zeros((0, side, side, 3), np.uint8)
            if rows:
                pixels = np.stack([read[i] for i in rows])
            yield Batch(start + np.array(rows, int), (pad_to(pixels, size),), failed)
