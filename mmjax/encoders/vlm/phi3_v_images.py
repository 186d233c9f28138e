"""Cut images into square crops and an overview for Phi-3-vision.

This is the HD transform of InternLM-XComposer2-4KHD (Dong et al. 2024), as Phi-3-vision's image
processor does it. The longer side becomes as many square crops as the budget allows. The shorter
side keeps the aspect ratio and is padded with white to full crops. The vision tower reads each crop
and an overview: the padded image at the size of one crop. Four neighbouring patches make one token.
The decoder reads the crops' tokens row by row across the image with a newline after each row, then
a separator, then the overview's tokens, again with newlines.
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

ADVISED = 16  # maximum crops of a single image by the model card; 4 with several images
SIDE, MERGED = 336, 12  # pixels and tokens along a crop's side, in the published checkpoints
NEWLINE, SEPARATOR, OVERVIEW = 0, 1, 2  # first value of each kind in `Crops.places`
# torch's bicubic kernel (Keys 1981, a = -3/4) half-way between two pixels: exact in float32.
HALFWAY = np.array([-3, 19, 19, -3], np.float32) / 32


class Crops(NamedTuple):
    """Crops of an image and the order of its tokens.

    In a batch every array has a leading axis B, and rows with fewer crops are padded with zeros at
    the end, see `collate`.
    """

    pixels: Any  # uint8 [C, S, S, 3] crops row by row from the top left
    overview: Any  # float32 [S, S, 3] in 0 to 255; a bicubic resize may overshoot
    # int32 [M] the token at each position: 0 newline, 1 separator, from 2 on the overview's tokens,
    # then those of the first crop, the second …; within a crop tokens count row by row.
    places: Any


def view(image: Image.Image, num_crops: int, side: int = SIDE, merged: int = MERGED) -> Crops:
    """Cut one RGB image into crops and an overview.

    The resize is Pillow's bilinear one, as torchvision's for PIL images. The overview is a bicubic
    resize of the padded image without antialiasing, as `torch.nn.functional.interpolate` of
    normalised pixels. Bicubic weights sum to one, so resizing and normalising commute.

    Args:
      image: RGB.
      num_crops: maximum crops.
      side: pixels along a crop's side, S.
      merged: tokens along a crop's side.

    Raises:
      ValueError: as in `grid`.
    """
    rows, columns = grid(image.width, image.height, num_crops, side)
    pixels = _resized(image, rows, columns, side)
    crops = pixels.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    overview = _shrunk(_shrunk(pixels.astype(np.float32), rows, 0), columns, 1)
    return Crops(crops, overview, layout(rows, columns, merged))


def grid(width: int, height: int, num_crops: int, side: int = SIDE) -> tuple[int, int]:
    """Return the rows and columns of an image's crops.

    Raises:
      ValueError: the sides differ so much that the shorter would have no pixel.
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
    """Build `Crops.places`, int32 [M], for rows x columns crops.

    M is (rows * columns + 1) * merged² + 1 + (rows + 1) * merged.
    """
    overview = np.arange(merged * merged).reshape(merged, merged)
    token_rows, token_columns = np.indices((rows * merged, columns * merged))
    crop = token_rows // merged * columns + token_columns // merged
    crops = overview[token_rows % merged, token_columns % merged] + (crop + 1) * overview.size
    lines = [
        np.pad(OVERVIEW + part, ((0, 0), (0, 1)), constant_values=NEWLINE).ravel()
        for part in (crops, overview)
    ]
    return np.concatenate([lines[0], [SEPARATOR], lines[1]], dtype=np.int32)


def tokens(crops: Crops) -> int:
    """Return the number of tokens of an image."""
    return len(crops.places)


def collate(views: Sequence[Crops], size: int) -> Crops:
    """Stack views into one batch [B, …] of `size` rows.

    There must be at least one view. Missing rows are zeros.
    """
    count = max(len(crops.pixels) for crops in views)
    length = bucket(max(len(crops.places) for crops in views))
    return Crops(
        pad(np.stack([pad(crops.pixels, count) for crops in views]), size),
        pad(np.stack([crops.overview for crops in views]), size),
        pad(np.stack([pad(crops.places, length) for crops in views]), size),
    )


def read(folder: Path, num_crops: int | None = None) -> dict[str, Any]:
    """Read `num_crops`, `mean` and `std` from preprocessor_config.json.

    The argument `num_crops` overrides the file's value.

    Raises:
      InputError: the file is not JSON, or num_crops, mean or std is missing or invalid.
    """
    path = folder / "preprocessor_config.json"
    try:
        settings = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    count = settings.get("num_crops") if num_crops is None else num_crops
    if count is None:
        raise InputError(f"{path} does not say num_crops; give one ({ADVISED} is advised)")
    if not isinstance(count, int) or count < 1:
        raise InputError(f"num_crops {count!r} is no number of squares")
    mean, std = (
        tuple(settings.get(f"image_{name}") or default)
        for name, default in zip(("mean", "std"), CLIP, strict=True)
    )
    if len(mean) != 3 or len(std) != 3:
        raise InputError(f"{path} has no three numbers as image_mean and image_std")
    return {"num_crops": count, "mean": mean, "std": std}


def _resized(image: Image.Image, rows: int, columns: int, side: int) -> np.ndarray:
    """Resize an image to rows x columns crops, padded with white.

    Returns:
      uint8 [H, W, 3].
    """
    # A tall image is transposed before and after, because a resize rounds between its two passes.
    if image.width < image.height:
        transposed = image.transpose(Image.Transpose.TRANSPOSE)
        return _resized(transposed, columns, rows, side).swapaxes(0, 1)
    height = _height(image.width, image.height, columns * side)
    image = image.resize((columns * side, height), Image.Resampling.BILINEAR)
    pixels = np.full((rows * side, columns * side, 3), 255, np.uint8)
    top = (rows * side - height) // 2
    pixels[top : top + height] = np.asarray(image)
    return pixels


def _height(width: int, height: int, wanted: int) -> int:
    """Return the height at width `wanted`, rounded as in the published code."""
    return int(wanted / (width / height))


def _shrunk(pixels: np.ndarray, factor: int, axis: int) -> np.ndarray:
    """Shrink an axis by `factor`, as a bicubic resize does.

    An odd factor takes the middle pixel of each group of `factor` pixels, an even one interpolates
    half-way between the two middle pixels.
    """
    size = pixels.shape[axis]
    centres = np.arange(factor // 2, size, factor)
    if factor % 2:
        return np.take(pixels, centres, axis)
    taps = (np.take(pixels, np.clip(centres + step, 0, size - 1), axis) for step in (-2, -1, 0, 1))
    return sum(weight * tap for weight, tap in zip(HALFWAY, taps, strict=True))
