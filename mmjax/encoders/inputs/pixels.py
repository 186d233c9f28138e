"""Resize, crop and normalise images as the checkpoint's processor.

The host resizes and crops (Pillow, uint8); the device scales and normalises, so that a quarter of
the bytes travel. `Pixels.read` understands the preprocessor_config.json of the processors named in
`KINDS`, whose `*Pil` classes in transformers are the reference.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from mmjax.core.errors import InputError
from mmjax.encoders.checkpoints import locate

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
STANDARD = ((0.5,) * 3, (0.5,) * 3)
BICUBIC, BILINEAR = int(Image.Resampling.BICUBIC), int(Image.Resampling.BILINEAR)
WAYS = ("zscore", "minmax", "none")

# Defaults of each processor, by its name up to "Image" or "Feature".
KINDS: dict[str, dict[str, Any]] = {
    "ViT": {"size": {"height": 224, "width": 224}, "resample": BILINEAR, "mean": STANDARD},
    "DeiT": {
        "size": {"height": 256, "width": 256},
        "crop_size": {"height": 224, "width": 224},
        "mean": STANDARD,
    },
    "CLIP": {"size": {"shortest_edge": 224}, "crop_size": 224, "mean": CLIP},
    "Bit": {"size": {"shortest_edge": 224}, "crop_size": 224, "mean": CLIP},
    "ConvNext": {"size": {"shortest_edge": 384}, "crop_pct": 224 / 256, "mean": STANDARD},
    "Siglip": {"size": {"height": 224, "width": 224}, "mean": STANDARD},
    "Siglip2": {"resample": BILINEAR, "mean": STANDARD},  # NaFlex: every image has its own size
    "Blip": {"size": {"height": 384, "width": 384}, "mean": CLIP},
    "EfficientNet": {
        "size": {"height": 346, "width": 346},
        "crop_size": 289,
        "do_center_crop": False,
        "include_top": True,
        "mean": STANDARD,
    },
}
# Processors for which a size of one number is the shorter edge; else it is both edges.
BY_SHORTEST_EDGE = ("CLIP", "Bit", "ConvNext", "Siglip")


@dataclass(frozen=True)
class ImageOptions:
    """Image settings of the user; None keeps the checkpoint's value."""

    # Folder, packaged name, hub id, or preprocessor_config.json, instead of the checkpoint's.
    image_processor: str | None = None
    reshape: tuple[int, int] | None = None  # (height, width), bicubic, nothing cropped
    preprocessing: str | None = None  # of WAYS
    mean: tuple[float, ...] | None = None  # with zscore
    std: tuple[float, ...] | None = None
    workers: int | None = None  # threads that decode; as many as cores unless given
    max_pixels: int = 100_000_000  # a larger image is not decoded


@dataclass(frozen=True)
class Pixels:
    """Image preprocessing: resize, centre crop, scale and normalise.

    A channel becomes (x·scale − offset − mean) / std; with `minmax`, x·scale − offset is mapped to
    [0, 1] instead.
    """

    resize: tuple[int, int] | int | None  # (height, width), or the shorter edge
    crop: tuple[int, int] | None = None
    resample: int = BICUBIC
    scale: float = 1 / 255
    offset: float = 0.0
    mean: tuple[float, ...] = (0.0,) * 3
    std: tuple[float, ...] = (1.0,) * 3
    minmax: bool = False  # per image to [0, 1], instead of mean and std
    nearest: bool = False  # half an odd margin rounds to even, as torchvision does; else down

    @classmethod
    def read(cls, folder: Path, options: ImageOptions, default: "Pixels | None" = None) -> "Pixels":
        """Read the preprocessing of `folder`, then apply `options`.

        It is in preprocessor_config.json; without that file it is `default`.

        Raises:
          InputError: no such file and no default, a processor that is not in KINDS, or options
            that contradict each other.
        """
        path = locate.settings(options.image_processor) if options.image_processor else folder
        path = path if path.suffix == ".json" else path / "preprocessor_config.json"
        if path.exists():
            pixels = _parse(path)
        elif default is None or options.image_processor:
            raise InputError(f"{path} is missing; name another by --image_processor")
        else:
            pixels = default
        return pixels._changed(options)

    @property
    def size(self) -> tuple[int, int]:
        """Return (height, width) of every image.

        Raises:
          InputError: images would differ in shape.
        """
        size = self.crop or self.resize
        if not isinstance(size, tuple):
            raise InputError(
                "the image processor neither crops nor resizes to one shape; pass --reshape"
            )
        return size

    def apply(self, image: Image.Image) -> np.ndarray:
        """Resize and crop an RGB image to uint8 [H, W, 3]."""
        if self.resize is not None:
            height, width = _resized(image, self.resize)
            image = image.resize((width, height), Image.Resampling(self.resample))
        if self.crop is not None:
            margins = (has - want for has, want in zip(image.size[::-1], self.crop, strict=True))
            top, left = (round(margin / 2) if self.nearest else margin // 2 for margin in margins)
            # Pixels outside of a smaller image become black.
            image = image.crop((left, top, left + self.crop[1], top + self.crop[0]))
        return np.asarray(image)

    def normalize(self, pixels: jax.Array) -> jax.Array:
        """Normalise uint8 [B, H, W, 3] to float32, on the device."""
        values = pixels.astype(jnp.float32) * self.scale - self.offset
        if self.minmax:
            low = values.min(axis=(1, 2, 3), keepdims=True)
            high = values.max(axis=(1, 2, 3), keepdims=True)
            return (values - low) / jnp.maximum(high - low, 1e-12)  # one colour only: zeros
        mean, std = (jnp.array(part).reshape(1, 1, 1, -1) for part in (self.mean, self.std))
        return (values - mean) / std

    def __str__(self) -> str:
        how = f"resize {self.resize}, " if self.resize else ""
        how += f"crop {self.crop}{' (nearest)' * self.nearest}, " if self.crop else ""
        how += f"resample {self.resample}, scale {self.scale:.8g}, offset {self.offset:g}"
        return how + (", min-max" if self.minmax else f", mean {self.mean}, std {self.std}")

    def _changed(self, options: ImageOptions) -> "Pixels":
        pixels, way = self, options.preprocessing
        if way is not None and way not in WAYS:
            raise InputError(f"preprocessing {way!r} is none of {', '.join(WAYS)}")
        if (options.mean or options.std) and way in ("minmax", "none"):
            raise InputError(f"mean and std belong to zscore, not to preprocessing {way}")
        for values in (options.mean, options.std):
            if values and len(values) != 3:
                raise InputError(f"mean and std are three numbers each, not {len(values)}")
        if options.std and min(options.std) <= 0:
            raise InputError(f"std must be positive, not {options.std}")
        if options.reshape and (len(options.reshape) != 2 or min(options.reshape) < 1):
            raise InputError(f"reshape is a height and a width, not {options.reshape}")
        if options.reshape:
            pixels = replace(pixels, resize=options.reshape, crop=None, resample=BICUBIC)
        if way == "zscore" and pixels.mean == (0.0,) * 3 and pixels.std == (1.0,) * 3:
            pixels = replace(pixels, mean=IMAGENET[0], std=IMAGENET[1], scale=1 / 255, offset=0.0)
        if way in ("minmax", "none"):
            pixels = replace(pixels, mean=(0.0,) * 3, std=(1.0,) * 3, scale=1 / 255, offset=0.0)
        if options.mean or options.std:  # they refer to values in [0, 1]
            pixels = replace(pixels, scale=1 / 255, offset=0.0)
        mean, std = options.mean or pixels.mean, options.std or pixels.std
        return replace(pixels, minmax=way == "minmax", mean=tuple(mean), std=tuple(std))


def _parse(path: Path) -> Pixels:
    try:
        config = json.loads(path.read_text())
        name = config.get("image_processor_type") or config.get("feature_extractor_type") or "ViT"
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    kind = name.split("Image")[0].split("Feature")[0]
    if kind not in KINDS:
        raise InputError(
            f"{path} is of a {name}, which is none of {', '.join(KINDS)}; name another by "
            "--image_processor, or give --reshape and --preprocessing with --backend=torch"
        )
    merged = KINDS[kind] | {key: value for key, value in config.items() if value is not None}
    try:
        return _understood(kind, merged)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} cannot be understood: {error}") from None


def _understood(kind: str, about: dict[str, Any]) -> Pixels:
    mean, std = KINDS[kind]["mean"]
    mean = _channels("image_mean", about.get("image_mean", mean))
    std = own_std = _channels("image_std", about.get("image_std", std))
    rescale, resize = about.get("do_rescale", True), None
    if about.get("do_resize", True) and about.get("size") is not None:
        resize = _size("size", about["size"], square=kind not in BY_SHORTEST_EDGE)
    crop: tuple[int, int] | None = None
    if "crop_size" in about and about.get("do_center_crop", True):
        size = _size("crop_size", about["crop_size"], square=True)
        if not isinstance(size, tuple):
            raise ValueError(f"crop_size {about['crop_size']} has no height and width")
        crop = size
    if kind == "ConvNext" and resize is not None:  # it crops on its own, only below 384
        if not isinstance(resize, int):
            raise ValueError(f"size {about['size']} has no shortest_edge")
        crop = (resize, resize) if resize < 384 else crop
        resize = int(resize / about["crop_pct"]) if resize < 384 else (resize, resize)
    if not about.get("do_normalize", True):
        mean, std = (0.0,) * 3, (1.0,) * 3
    if about.get("include_top"):  # this processor divides by std once more
        std = tuple(value * divisor for value, divisor in zip(std, own_std, strict=True))
    return Pixels(
        resize=resize,
        crop=crop,
        resample=int(about.get("resample", BICUBIC)),
        scale=about.get("rescale_factor", 1 / 255) if rescale else 1.0,
        offset=1.0 if rescale and about.get("rescale_offset") else 0.0,
        mean=mean,
        std=std,
    )


def _channels(name: str, values: Any) -> tuple[float, ...]:
    """Return a processor's mean or std as three numbers.

    One number stands for all channels.
    """
    values = tuple(values) if isinstance(values, (list, tuple)) else (float(values),) * 3
    if len(values) != 3:
        raise ValueError(f"{name} has {len(values)} numbers for 3 channels")
    return values


def _size(name: str, size: Any, *, square: bool) -> tuple[int, int] | int:
    """Parse a processor's size into (height, width) or a shorter edge.

    It is a number (one edge, or both if `square`), {height, width} or {shortest_edge}.
    """
    if isinstance(size, dict):
        if set(size) == {"shortest_edge"}:
            return int(size["shortest_edge"])
        if set(size) != {"height", "width"}:
            raise ValueError(f"{name} {size} is neither height and width nor a shortest_edge")
        return int(size["height"]), int(size["width"])
    if isinstance(size, (list, tuple)):
        return int(size[0]), int(size[1])
    if not isinstance(size, int):
        raise ValueError(f"{name} is {size!r}, which is no number")
    return (size, size) if square else size


def _resized(image: Image.Image, size: tuple[int, int] | int) -> tuple[int, int]:
    """Return (height, width) after the resize.

    The longer edge is rounded down, as torchvision does.
    """
    if isinstance(size, tuple):
        return size
    width, height = image.size
    short, long = min(width, height), max(width, height)
    longer = int(size * long / short)
    return (longer, size) if width <= height else (size, longer)
