"""Images of Phi-3-vision: cut into squares at a size of their own, and once more as a whole.

The HD transform of InternLM-XComposer2-4KHD (Dong et al. 2024), as Phi-3-vision's image processor
does it: the longer side becomes as many squares as the budget allows, the shorter side keeps the
image's shape and is padded with white to whole squares. Each square, and an overview of the padded
image the size of one square, goes through the vision tower; four neighbouring patches of a square
make one token. The decoder reads the squares' tokens row by row across the image with a newline
behind each row, a separator, and the overview's tokens, again with newlines.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mmjax.core.errors import InputError
from mmjax.encoders.inputs.pixels import CLIP
from mmjax.encoders.vlm.lvlm import bucket, pad

ADVISED = 16  # squares of a single image at most, by the model card; 4 where there are several
SIDE, MERGED = 336, 12  # pixels and tokens along a square's side, in the published checkpoints
NEWLINE, SEPARATOR, OVERVIEW = 0, 1, 2  # where `Crops.places` begins to count each
# torch's bicubic kernel (Keys 1981, a = -3/4) half-way between two pixels: exact in float32.
HALFWAY = np.array([-3, 19, 19, -3], np.float32) / 32


class Crops(NamedTuple):
    """An image's squares and the order of its tokens; with a leading B once in a batch.

    Rows of different crop counts are padded behind with zeros, see `collate`.
    """

    pixels: Any  # uint8 [C, S, S, 3] squares in rows from the top left
    overview: Any  # float32 [S, S, 3] of 0 to 255, beyond which a bicubic resize may overshoot
    # int32 [M] which token stands there: 0 the newline, 1 the separator, from 2 on the overview's,
    # behind them those of the first square, the second …; a square's own tokens are in rows.
    places: Any


def view(image: Image.Image, num_crops: int, side: int = SIDE, merged: int = MERGED) -> Crops:
    """What the model reads of one RGB image.

    The resize is Pillow's bilinear one, as torchvision's is of a PIL image. The overview is
    bicubic, without antialiasing, of the padded image, as `torch.nn.functional.interpolate` makes
    it of normalised pixels; bicubic weights sum to one, so that both may be exchanged.

    Args:
      num_crops: squares at most.
      side: of a square, in pixels; S.
      merged: tokens along a square's side.

    Raises:
      ValueError: what `grid` raises.
    """
    rows, columns = grid(image.width, image.height, num_crops, side)
    pixels = _resized(image, rows, columns, side)
    crops = pixels.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    overview = _shrunk(_shrunk(pixels.astype(np.float32), rows, 0), columns, 1)
    return Crops(crops, overview, layout(rows, columns, merged))


def grid(width: int, height: int, num_crops: int, side: int = SIDE) -> tuple[int, int]:
    """Rows and columns of the squares that an image of this size is cut into.

    Raises:
      ValueError: its sides differ so much that nothing would remain of the shorter.
    """
    if width < height:
        rows, columns = grid(height, width, num_crops, side)
        return columns, rows
    ratio = width / height
    columns = max(n for n in range(1, num_crops + 1) if n * math.ceil(n / ratio) <= num_crops)
    rows = math.ceil(_height(width, height, columns * side) / side)
    if not rows:
        raise ValueError(
            f"{width} by {height} pixels: one side is over {columns * side} times the other"
        )
    return rows, columns


def layout(rows: int, columns: int, merged: int = MERGED) -> np.ndarray:
    """`Crops.places` of an image of rows x columns squares, int32 [M].

    M is (rows * columns + 1) * merged² + 1 + (rows + 1) * merged.
    """
    whole = np.arange(merged * merged).reshape(merged, merged)
    tall, wide = np.indices((rows * merged, columns * merged))
    square = tall // merged * columns + wide // merged
    parts = whole[tall % merged, wide % merged] + (square + 1) * whole.size
    lines = [
        np.pad(OVERVIEW + part, ((0, 0), (0, 1)), constant_values=NEWLINE).ravel()
        for part in (parts, whole)
    ]
    return np.concatenate([lines[0], [SEPARATOR], lines[1]], dtype=np.int32)


def tokens(crops: Crops) -> int:
    """How many tokens an image takes."""
    return len(crops.places)


def collate(views: Sequence[Crops], size: int) -> Crops:
    """Views of at least one row to one batch [B, …] of `size` rows; those that lack are zeros."""
    count = max(len(crops.pixels) for crops in views)
    length = bucket(max(len(crops.places) for crops in views))
    return Crops(
        pad(np.stack([pad(crops.pixels, count) for crops in views]), size),
        pad(np.stack([crops.overview for crops in views]), size),
        pad(np.stack([pad(crops.places, length) for crops in views]), size),
    )


def read(folder: Path, num_crops: int | None = None) -> dict[str, Any]:
    """`num_crops`, `mean` and `std` by preprocessor_config.json; `num_crops` in its stead if given.

    Raises:
      InputError: there is no such file and no `num_crops`, or they are none.
    """
    path = folder / "preprocessor_config.json"
    try:
        about = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    count = about.get("num_crops") if num_crops is None else num_crops
    if count is None:
        raise InputError(f"{path} does not say num_crops; give one ({ADVISED} is advised)")
    if not isinstance(count, int) or count < 1:
        raise InputError(f"num_crops {count!r} is no number of squares")
    mean, std = (
        tuple(about.get(f"image_{name}") or default)
        for name, default in zip(("mean", "std"), CLIP, strict=True)
    )
    if len(mean) != 3 or len(std) != 3:
        raise InputError(f"{path} has no three numbers as image_mean and image_std")
    return {"num_crops": count, "mean": mean, "std": std}


def _resized(image: Image.Image, rows: int, columns: int, side: int) -> np.ndarray:
    """The image in rows x columns squares, padded with white, uint8 [H, W, 3]."""
    # A tall image is laid on its side and back: the two passes of a resize round in between.
    if image.width < image.height:
        lying = image.transpose(Image.Transpose.TRANSPOSE)
        return _resized(lying, columns, rows, side).swapaxes(0, 1)
    height = _height(image.width, image.height, columns * side)
    image = image.resize((columns * side, height), Image.Resampling.BILINEAR)
    pixels = np.full((rows * side, columns * side, 3), 255, np.uint8)
    top = (rows * side - height) // 2
    pixels[top : top + height] = np.asarray(image)
    return pixels


def _height(width: int, height: int, wanted: int) -> int:
    """Of an image made `wanted` wide; rounded as the published code does."""
    return int(wanted / (width / height))


def _shrunk(pixels: np.ndarray, factor: int, axis: int) -> np.ndarray:
    """An axis `factor` times shorter: the middle pixel of each `factor`, or about the middle."""
    size = pixels.shape[axis]
    at = np.arange(factor // 2, size, factor)
    if factor % 2:
        return np.take(pixels, at, axis)
    taps = (np.take(pixels, np.clip(at + step, 0, size - 1), axis) for step in (-2, -1, 0, 1))
    return sum(weight * tap for weight, tap in zip(HALFWAY, taps, strict=True))
