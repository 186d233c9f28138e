"""From a decoded image to the numbers a model was trained on, as its image processor says.

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

from mmjax.errors import InputError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
STANDARD = ((0.5,) * 3, (0.5,) * 3)
BICUBIC, BILINEAR = int(Image.Resampling.BICUBIC), int(Image.Resampling.BILINEAR)
WAYS = ("zscore", "minmax", "none")

# By the processor's name without what follows "Image" or "Feature": what it does by default.
KINDS: dict[str, dict[str, Any]] = {
    "ViT": {"size": {"height": 224, "width": 224}, "resample": BILINEAR, "mean": STANDARD},
    "DeiT": {
        "size": {"height": 256, "width": 256},
        "crop_size": {"height": 224, "width": 224},
        "mean": IMAGENET,
    },
    "CLIP": {"size": {"shortest_edge": 224}, "crop_size": 224, "mean": CLIP},
    "Bit": {"size": {"shortest_edge": 224}, "crop_size": 224, "mean": CLIP},
    "ConvNext": {"size": {"shortest_edge": 384}, "crop_pct": 224 / 256, "mean": STANDARD},
    "Siglip": {"size": {"height": 224, "width": 224}, "mean": STANDARD},
    "Blip": {"size": {"height": 384, "width": 384}, "mean": CLIP},
    "EfficientNet": {
        "size": {"height": 346, "width": 346},
        "crop_size": 289,
        "do_center_crop": False,
        "include_top": True,
        "mean": STANDARD,
    },
}


@dataclass(frozen=True)
class Options:
    """What a user may change of it; None leaves what the checkpoint says."""

    image_processor: str | None = None  # folder, or preprocessor_config.json, read in its stead
    reshape: tuple[int, int] | None = None  # (height, width), bicubic, nothing cropped
    preprocessing: str | None = None  # of WAYS
    mean: tuple[float, ...] | None = None  # with zscore
    std: tuple[float, ...] | None = None
    workers: int | None = None  # threads that decode; as many as cores unless given
    max_pixels: int = 100_000_000  # a larger image is not decoded


@dataclass(frozen=True)
class Pixels:
    """Resize, centre crop, then (x·scale − offset − mean) / std per channel."""

    resize: tuple[int, int] | int | None  # (height, width), or the shorter edge
    crop: tuple[int, int] | None = None
    resample: int = BICUBIC
    scale: float = 1 / 255
    offset: float = 0.0
    mean: tuple[float, ...] = (0.0,) * 3
    std: tuple[float, ...] = (1.0,) * 3
    minmax: bool = False  # each image by itself to [0, 1], instead of mean and std

    @classmethod
    def read(cls, folder: Path, options: Options, default: "Pixels | None" = None) -> "Pixels":
        """As `folder`'s preprocessor_config.json says, or `default` without it; then `options`.

        Raises:
          InputError: no such file and no default, a processor that is not in KINDS, or options
            that contradict each other.
        """
        path = Path(options.image_processor or folder)
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
        """(height, width) of every image; InputError where they would differ."""
        size = self.crop or self.resize
        if not isinstance(size, tuple):
            raise InputError(
                "the image processor neither crops nor resizes to one shape; pass --reshape"
            )
        return size

    def apply(self, image: Image.Image) -> np.ndarray:
        """An RGB image to uint8 [H, W, 3]."""
        if self.resize is not None:
            height, width = _resized(image, self.resize)
            image = image.resize((width, height), Image.Resampling(self.resample))
        if self.crop is not None:
            top, left = ((has - want) // 2 for has, want in zip(image.size[::-1], self.crop))  # noqa: B905
            # What lies outside of a smaller image is black.
            image = image.crop((left, top, left + self.crop[1], top + self.crop[0]))
        return np.asarray(image)

    def normalize(self, pixels: jax.Array) -> jax.Array:
        """uint8 [B, H, W, 3] to float32, on the device."""
        values = pixels.astype(jnp.float32) * self.scale - self.offset
        if self.minmax:
            low = values.min(axis=(1, 2, 3), keepdims=True)
            high = values.max(axis=(1, 2, 3), keepdims=True)
            return (values - low) / jnp.maximum(high - low, 1e-12)  # one flat colour: zeros
        mean, std = (jnp.array(part).reshape(1, 1, 1, -1) for part in (self.mean, self.std))
        return (values - mean) / std

    def __str__(self) -> str:
        how = f"resize {self.resize}, " if self.resize else ""
        how += f"crop {self.crop}, " if self.crop else ""
        how += f"resample {self.resample}, scale {self.scale:.8g}, offset {self.offset:g}"
        return how + (", min-max" if self.minmax else f", mean {self.mean}, std {self.std}")

    def _changed(self, options: Options) -> "Pixels":
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
        if options.reshape:
            pixels = replace(pixels, resize=options.reshape, crop=None, resample=BICUBIC)
        if way == "zscore" and pixels.mean == (0.0,) * 3 and pixels.std == (1.0,) * 3:
            pixels = replace(pixels, mean=IMAGENET[0], std=IMAGENET[1])
        if way in ("minmax", "none"):
            pixels = replace(pixels, mean=(0.0,) * 3, std=(1.0,) * 3, scale=1 / 255, offset=0.0)
        mean, std = options.mean or pixels.mean, options.std or pixels.std
        return replace(pixels, minmax=way == "minmax", mean=tuple(mean), std=tuple(std))


def _parse(path: Path) -> Pixels:
    try:
        given = json.loads(path.read_text())
        name = given.get("image_processor_type") or given.get("feature_extractor_type") or "ViT"
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    kind = name.split("Image")[0].split("Feature")[0]
    if kind not in KINDS:
        raise InputError(
            f"{path} is of a {name}, which is none of {', '.join(KINDS)}; name another by "
            "--image_processor, or give --reshape and --preprocessing with --backend=torch"
        )
    about = KINDS[kind] | {key: value for key, value in given.items() if value is not None}
    mean, std = KINDS[kind]["mean"]
    mean, std = tuple(about.get("image_mean", mean)), tuple(about.get("image_std", std))
    size = _size(about["size"], square=kind not in ("CLIP", "Bit", "ConvNext"))
    crop = _size(about["crop_size"], square=True) if "crop_size" in about else None
    if not about.get("do_center_crop", True):
        crop = None
    if kind == "ConvNext":  # it crops by itself, and only below 384
        edge = size if isinstance(size, int) else size[0]
        crop = (edge, edge) if edge < 384 else None
        size = int(edge / about["crop_pct"]) if edge < 384 else (edge, edge)
    if not about.get("do_normalize", True):
        mean, std = (0.0,) * 3, (1.0,) * 3
    if about.get("include_top"):  # it divides by std once more
        mean, std = (
            tuple(m for m in mean),
            tuple(s * t for s, t in zip(std, about.get("image_std", STANDARD[1]), strict=True)),
        )
    rescale = about.get("do_rescale", True)
    return Pixels(
        resize=size if about.get("do_resize", True) else None,
        crop=crop,
        resample=int(about.get("resample", BICUBIC)),
        scale=about.get("rescale_factor", 1 / 255) if rescale else 1.0,
        offset=1.0 if about.get("rescale_offset") else 0.0,
        mean=mean,
        std=std,
    )


def _size(size: Any, *, square: bool) -> tuple[int, int] | int:
    """A processor's size: a number (one edge, or both), {height, width} or {shortest_edge}."""
    if isinstance(size, dict):
        if "shortest_edge" in size:
            return int(size["shortest_edge"])
        return int(size["height"]), int(size["width"])
    if isinstance(size, (list, tuple)):
        return int(size[0]), int(size[1])
    return (int(size), int(size)) if square else int(size)


def _resized(image: Image.Image, size: tuple[int, int] | int) -> tuple[int, int]:
    """(height, width) after the resize; the longer edge is rounded down, as torchvision does."""
    if isinstance(size, tuple):
        return size
    width, height = image.size
    short, long = min(width, height), max(width, height)
    other = int(size * long / short)
    return (other, size) if width <= height else (size, other)
