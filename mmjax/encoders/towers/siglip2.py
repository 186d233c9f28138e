"""SigLIP 2 NaFlex (Tschannen et al. 2025): images keep their aspect ratio.

An image becomes the largest grid of patches of nearly its own aspect ratio that the model may read,
padded to that many patches; positions are resized to each grid. `siglip` reads checkpoints of a
fixed resolution. Vectors are not of unit length, as there.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from mmjax.core.errors import InputError
from mmjax.encoders import outputs
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.checkpoints.hub import Rule
from mmjax.encoders.core import Batch, Tower, pad_to
from mmjax.encoders.inputs import images
from mmjax.encoders.inputs.pixels import ImageOptions, Pixels
from mmjax.encoders.inputs.text import TextOptions
from mmjax.encoders.outputs import Outputs
from mmjax.encoders.towers import clip, siglip
from mmjax.encoders.towers.vit import read_fields

MODEL_TYPES = ("siglip2", "siglip2_vision_model", "siglip2_text_model")  # of config.json


@dataclass(frozen=True)
class VisionConfig:
    """Shape of the image encoder, by the names of config.json.

    Fields that config.json omits take transformers' defaults.
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    num_patches: int = 256  # of the square grid whose positions were trained
    patch_size: int = 16
    vision_use_head: bool = True


class Tokens(nnx.Module):
    """Patch embedding for grids of many shapes.

    Positions of a square grid are resized to each grid.
    """

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.02)
        shape = (config.num_patches, config.hidden_size)
        self.project = nnx.Linear(config.patch_size**2 * 3, config.hidden_size, rngs=rngs)
        self.positions = nnx.Param(init(rngs.params(), shape, jnp.float32))

    def __call__(self, patches: jax.Array, grid: jax.Array) -> jax.Array:
        """Embed patches with their positions, [B, L, D].

        Args:
          patches: [B, L, p · p · 3].
          grid: int [B, 2], rows and columns.
        """
        table = self.positions[...]
        side = round(len(table) ** 0.5)
        rows, columns = jnp.split(jnp.maximum(grid, 1), 2, axis=1)  # [B, 1] each
        index = jnp.arange(patches.shape[1])[None]
        down = triangle(jnp.minimum(index // columns, rows - 1), rows, side)  # clipped for padding
        across = triangle(index % columns, columns, side)
        weights = (down[..., None] * across[:, :, None]).reshape(*down.shape[:2], side * side)
        positions = (weights @ table.astype(jnp.float32)).astype(table.dtype)
        return self.project(patches) + positions


def triangle(place: jax.Array, count: jax.Array, side: int) -> jax.Array:
    """Return weights [B, L, side] of an antialiased linear resize.

    It resizes from `side` to `count` [B, 1] places.
    """
    spacing = side / count
    centres = (place + 0.5) * spacing - 0.5  # [B, L]
    distance = jnp.abs(jnp.arange(side)[None, None] - centres[..., None])
    weights = jnp.maximum(0, 1 - distance / jnp.maximum(spacing, 1)[..., None])
    return weights / weights.sum(axis=-1, keepdims=True)


class Vision(nnx.Module):
    """SigLIP 2's image encoder."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        self.tokens = Tokens(config, rngs=rngs)
        self.trunk = siglip.Trunk(config, rngs=rngs)

    def __call__(self, patches: jax.Array, grid: jax.Array) -> tuple[Outputs, jax.Array]:
        """Return the outputs of `siglip.Vision` and the mask of patches.

        Args:
          patches: [B, L, p · p · 3] in rows from the top left, then padding.
          grid: int [B, 2], rows and columns.

        Returns:
          The outputs, and a mask [B, L], true where there is no padding.
        """
        mask = jnp.arange(patches.shape[1])[None] < grid.prod(axis=1)[:, None]
        return self.trunk(self.tokens(patches, grid), mask), mask


@dataclass(frozen=True)
class Flexible:
    """Image preprocessing of NaFlex: from an image to patches."""

    pixels: Pixels
    patch: int  # pixels
    most: int  # patches

    @classmethod
    def read(cls, folder: Path, options: ImageOptions, patch: int) -> "Flexible":
        """Read the preprocessing from preprocessor_config.json.

        Raises:
          InputError: what `Pixels.read` raises, or images would not keep their shape.
        """
        pixels = Pixels.read(folder, options)
        if pixels.resize is not None or pixels.minmax:
            raise InputError(
                "SigLIP 2 NaFlex sizes images by itself: no --reshape, no minmax, no processor "
                "that resizes"
            )
        path = Path(options.image_processor or folder)
        path = path if path.suffix == ".json" else path / "preprocessor_config.json"
        settings = json.loads(path.read_text())
        if not settings.get("do_resize", True):
            raise InputError(f"{path} does not resize, which SigLIP 2 NaFlex cannot do without")
        if settings.get("patch_size", patch) != patch:
            raise InputError(
                f"{path} has patches of {settings['patch_size']}, the model of {patch}"
            )
        return cls(pixels, patch, settings.get("max_num_patches", 256))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of patches for an image size.

        They belong to the largest scale, by bisection to 1e-5, of at most `most` patches.
        """

        def at(scale: float) -> tuple[int, int]:
            rows, columns = (
                max(1, math.ceil(side * scale / self.patch)) for side in (height, width)
            )
            return rows, columns

        low, high = 1e-6, 100.0
        while high - low >= 1e-5:
            middle = (low + high) / 2
            if math.prod(at(middle)) <= self.most:
                low = middle
            else:
                high = middle
        return at(low)

    def apply(self, image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
        """Cut an RGB image into patches.

        Returns:
          uint8 patches [most, p · p · 3] and their grid, int [2].
        """
        rows, columns = self.grid(image.height, image.width)
        size, p = (columns * self.patch, rows * self.patch), self.patch
        array = np.asarray(image.resize(size, Image.Resampling(self.pixels.resample)))
        squares = array.reshape(rows, p, columns, p, 3).swapaxes(1, 2)
        patches = squares.reshape(rows * columns, p * p * 3)
        return pad_to(patches, self.most), np.array([rows, columns], np.int32)


def key_map() -> list[Rule]:
    """Return the key map of Siglip2Model's image encoder.

    The checkpoint may be of the whole model or of this half only; the text encoder's names are
    ignored.
    """
    prefix = r"(?:vision_model\.)?"
    return [
        Rule(r"(?:logit_(?:scale|bias)|(?:classifier|text_model)\..*)", None),
        *hub.linear(prefix + r"embeddings\.patch_embedding", "tokens.project"),
        *siglip.vision_rules(prefix),
    ]


def load(
    *,
    weights: str = "google/siglip2-base-patch16-naflex",
    revision: str | None = None,
    modality: str = "image",
    layers: Sequence[str | int] = (),
    dtype: str = "float32",
    image: ImageOptions = ImageOptions(),
    text_options: TextOptions = TextOptions(),
) -> Tower:
    """Build the image or text tower of a NaFlex checkpoint.

    Arguments are those of `siglip.load`.

    Raises:
      InputError: the checkpoint is missing, damaged or of another architecture, or a layer is
        unknown.
    """
    if modality == "text":
        return siglip.load_text("siglip2", weights, revision, layers, dtype, text_options)
    checkpoint, half = clip.open_half(weights, revision, modality, "siglip2")
    config = read_fields(VisionConfig, half)
    flexible = Flexible.read(checkpoint.folder, image, config.patch_size)
    graph, params = hub.load_module(
        lambda: Vision(config, rngs=nnx.Rngs(0)), checkpoint.weights, key_map(), jnp.dtype(dtype)
    )

    def forward(module: Any, raw: jax.Array, grid: jax.Array) -> tuple[Outputs, jax.Array]:
        colours = raw.reshape(*raw.shape[:2], -1, 3)
        patches = flexible.pixels.normalize(colours).reshape(raw.shape)
        return module(patches.astype(jnp.dtype(dtype)), grid)

    def batches(paths: Sequence[str], size: int) -> Iterator[Batch]:
        for rows, decoded, failed in images.decoded(paths, size, flexible.apply, image):
            parts = (np.stack(part) for part in zip(*decoded, strict=True))
            yield Batch(rows, tuple(pad_to(part, size) for part in parts), failed)

    patch = (1, flexible.most, config.patch_size**2 * 3)
    return outputs.tower(
        "image",
        graph,
        params,
        forward,
        batches=batches,
        example=(jax.ShapeDtypeStruct(patch, np.uint8), outputs.integers(1, 2)),
        layers=layers,
        default="image_embeds" if config.vision_use_head else "last_hidden_state:mean",
        about={
            "encoder": f"siglip2:{checkpoint.name}",
            "revision": checkpoint.revision,
            "half": modality,
            "preprocessing": f"{flexible.most} patches of {config.patch_size}, {flexible.pixels}",
        },
    )
