"""Shared parts of Qwen vision-language models: patches, positions, configuration, key map.

Patches are in the order of the merger: the four patches of each 2 x 2 square are adjacent, squares
are row by row. Each square becomes one token. A still image counts as two video frames, so the
patch embedding's kernel is summed over its two frames: half the work, the same result.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.core.errors import InputError
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.checkpoints.hub import Rule
from mmjax.encoders.vlm import decoder

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
STD = (0.26862954, 0.26130258, 0.27577711)
LONGEST = 200  # maximum ratio of the sides; transformers refuses more
NUMBERS = (  # required in config.json
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)

C = TypeVar("C")


class Patches(NamedTuple):
    """Patches of a row's images, padded to P.

    In a batch every array has a leading axis B.
    """

    pixels: Any  # uint8 [P, 3 * patch * patch], channels first
    image: Any  # int [P] number of the image in the row, from 1; 0 is padding
    at: Any  # int [2, P] row and column in the image's grid of patches
    grid: Any  # int [2, P] height and width of that grid


class QwenVl(nnx.Module):
    """Qwen vision-language model: a vision tower and a decoder.

    The tower maps patches to image tokens and, for some models, to states added to early layers.
    """

    def __init__(self, vision: nnx.Module, text: decoder.Decoder):
        self.vision, self.decoder = vision, text

    def look(self, patches: Patches) -> tuple[jax.Array, jax.Array | None]:
        """Encode patches to image tokens.

        Returns:
          Image tokens [B, P / 4, D]; states added after the first n layers [n, B, P / 4, D], or
          None.
        """
        return self.vision(patches)


class PatchEmbed(nnx.Module):
    """Patch embedding that normalises uint8 pixels first."""

    def __init__(
        self,
        size: int,
        width: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        bias: bool = False,
        rngs: nnx.Rngs,
    ):
        self.size, self.mean, self.std = size, tuple(mean), tuple(std)
        self.project = nnx.Linear(3 * 2 * size * size, width, use_bias=bias, rngs=rngs)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Normalise and project patches.

        Args:
          pixels: uint8 [B, P, 3 * size * size].

        Returns:
          [B, P, V], V the width of the tower.
        """
        kernel = self.project.kernel[...]
        area = self.size**2
        # As transformers: normalise in float32, then cast to the tower's dtype.
        mean, std = (
            jnp.repeat(jnp.array(part, jnp.float32), area)[None, None]
            for part in (self.mean, self.std)
        )
        x = ((pixels.astype(jnp.float32) / 255 - mean) / std).astype(kernel.dtype)
        frames = kernel.reshape(3, 2, area, -1).sum(1).reshape(3 * area, -1)
        x = x @ frames
        bias = self.project.bias
        return x if bias is None else x + bias[...][None, None]


def view(image: Any, patch: int, shortest: int, longest: int, resample: int) -> Patches:
    """Cut one PIL image into patches.

    The image is resized to the size that `smart_size` returns.

    Args:
      image: PIL image.
      patch: pixels along a patch's side.
      shortest: as in `smart_size`.
      longest: as in `smart_size`.
      resample: Pillow's resampling filter.

    Raises:
      ValueError: one side is over 200 times the other.
    """
    height, width = smart_size(image.height, image.width, 2 * patch, shortest, longest)
    pixels = np.asarray(image.resize((width, height), resample))  # [H, W, 3]
    rows, columns = height // patch, width // patch
    # [rows / 2, 2, patch, columns / 2, 2, patch, 3] to squares of 2 x 2 patches, channels first.
    patches = pixels.reshape(rows // 2, 2, patch, columns // 2, 2, patch, 3)
    patches = patches.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, -1)
    at = np.indices((rows, columns)).reshape(2, rows // 2, 2, columns // 2, 2)
    at = at.transpose(0, 1, 3, 2, 4).reshape(2, -1).astype(np.int32)
    grid = np.broadcast_to(np.array([[rows], [columns]], np.int32), at.shape)
    return Patches(patches, np.ones(len(patches), np.int32), at, grid)


def smart_size(
    height: int, width: int, factor: int, shortest: int, longest: int
) -> tuple[int, int]:
    """Return a height and width that `factor` divides, of bounded area.

    The aspect ratio is kept as nearly as possible.

    Args:
      height: of the image, in pixels.
      width: of the image, in pixels.
      factor: divisor of both sides.
      shortest: the least area in pixels.
      longest: the largest area in pixels.

    Raises:
      ValueError: one side is over 200 times the other.
    """
    if max(height, width) > LONGEST * min(height, width):
        raise ValueError(f"{height} x {width} pixels: one side is over {LONGEST} times the other")
    # Either side may round to 0: the area is then too small, and both are stretched.
    tall, wide = (round(side / factor) * factor for side in (height, width))
    if tall * wide > longest:
        shrink = math.sqrt(height * width / longest)
        return tuple(  # type: ignore[return-value]
            max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width)
        )
    if tall * wide < shortest:
        stretch = math.sqrt(shortest / (height * width))
        return tuple(  # type: ignore[return-value]
            math.ceil(side * stretch / factor) * factor for side in (height, width)
        )
    return tall, wide


def positions(parts: Sequence[int | tuple[int, int]]) -> np.ndarray:
    """Build the M-RoPE positions of a prompt.

    Text advances by one on all three axes. An image's tokens share a time and have rows and
    columns. Each part begins one past the largest position so far, so text after an image begins
    after the longer of its sides.

    Args:
      parts: in order, a number of text tokens, or an image's rows and columns of tokens.

    Returns:
      Time, row and column of each token, int32 [3, L].
    """
    blocks: list[np.ndarray] = [np.zeros((3, 0), np.int32)]
    start = 0
    for part in parts:
        if isinstance(part, tuple):
            offsets = np.indices((1, *part)).reshape(3, -1)
        else:
            offsets = np.broadcast_to(np.arange(part), (3, part))
        blocks.append(start + offsets)
        start = int(blocks[-1].max(initial=start - 1)) + 1
    return np.concatenate(blocks, axis=1, dtype=np.int32)


def text_part(given: dict[str, Any]) -> dict[str, Any]:
    """Return the decoder's settings of config.json, flattened.

    Older checkpoints have them at the top level, newer ones in text_config, which takes precedence.
    """
    return {**given, **(given.get("text_config") or {})}


def text_config(folder: Path, given: dict[str, Any], **defaults: Any) -> decoder.Config:
    """Read the decoder's configuration from config.json.

    Args:
      folder: of the checkpoint, for error messages.
      given: the content of config.json.
      **defaults: values for settings that it lacks.

    Raises:
      InputError: a number without a default is missing, or a sliding window is requested.
    """
    settings = text_part(given)
    if settings.get("use_sliding_window"):
        raise InputError(f"{folder} asks for a sliding window, which is not supported")
    names = decoder.Config.__dataclass_fields__
    fields = {
        **defaults,
        **{name: settings[name] for name in names if settings.get(name) is not None},
    }
    if settings.get("attention_bias"):
        fields |= {"bias": True, "out_bias": True}
    fields["tie_word_embeddings"] = bool(
        given.get("tie_word_embeddings") or settings.get("tie_word_embeddings")
    )
    lacking = [name for name in NUMBERS if name not in fields]
    if lacking:
        raise InputError(f"{folder}/config.json says no {', '.join(lacking)} of its text model")
    fields.setdefault("num_key_value_heads", fields["num_attention_heads"])
    fields.setdefault("head_dim", fields["hidden_size"] // fields["num_attention_heads"])
    return decoder.Config(**fields)


def vision_config(folder: Path, kind: type[C], given: dict[str, Any]) -> C:
    """Read the vision tower's configuration from config.json.

    Missing settings keep their defaults.

    Args:
      folder: of the checkpoint, for error messages.
      kind: the configuration class.
      given: the content of config.json.

    Raises:
      InputError: a setting is not supported.
    """
    settings = given.get("vision_config") or {}
    fixed = {"in_channels": 3, "spatial_merge_size": 2, "temporal_patch_size": 2}
    for name, value in fixed.items():
        if settings.get(name, value) != value:
            raise InputError(f"{folder} has {name} {settings[name]}; only {value} is supported")
    names = kind.__dataclass_fields__  # type: ignore[attr-defined]
    try:
        return kind(**{name: settings[name] for name in names if settings.get(name) is not None})
    except ValueError as error:
        raise InputError(f"{folder}/config.json: {error}") from None


def rope(
    config: decoder.Config, given: dict[str, Any], theta: float, sections: Sequence[int]
) -> tuple[float, list[int]]:
    """Read the RoPE base and the M-RoPE sections from config.json.

    They are in rope_parameters or rope_scaling; the base may also be rope_theta at the top level.

    Args:
      config: of the decoder.
      given: the content of config.json.
      theta: default of the base.
      sections: default of the sections.

    Returns:
      The base; the number of points of each section.

    Raises:
      InputError: the window was extended (YaRN and the like), or the sections do not fill a head.
    """
    settings = text_part(given)
    scaling = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in ("default", "mrope"):
        raise InputError(f"config.json asks for {kind} rotary positions, which are not supported")
    base = scaling.get("rope_theta") or settings.get("rope_theta") or theta
    points = list(scaling.get("mrope_section") or sections)
    if 2 * sum(points) != config.head_dim:
        raise InputError(f"config.json has mrope_section {points} for heads {config.head_dim} wide")
    return float(base), points


def text_rules(config: decoder.Config) -> list[Rule]:
    """Build the key map of the decoder.

    The prefixes `model.` and `language_model.` are optional in the checkpoint's names.
    """
    before = r"(?:model\.)?(?:language_model\.)?"
    # A tied head is the embedding, although some checkpoints save it.
    head = None if config.tie_word_embeddings else "decoder.head.kernel"
    layer, block = before + r"layers\.(\d+)\.", r"decoder.blocks[\1]."
    part = layer + r"self_attn\."
    return [
        *hub.embedding(before + "embed_tokens", "decoder.embed"),
        *(
            rule
            for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out"))
            for rule in hub.linear(part + theirs + "_proj", block + f"attention.{ours}")
        ),
        Rule(part + r"q_norm\.weight", block + "attention.query_norm.scale"),
        Rule(part + r"k_norm\.weight", block + "attention.key_norm.scale"),
        *(
            rule
            for name in ("gate", "up", "down")
            for rule in hub.linear(layer + rf"mlp\.{name}_proj", block + f"mlp.{name}")
        ),
        Rule(layer + r"input_layernorm\.weight", block + "attention_norm.scale"),
        Rule(layer + r"post_attention_layernorm\.weight", block + "mlp_norm.scale"),
        Rule(before + r"norm\.weight", "decoder.norm.scale"),
        Rule(r"lm_head\.weight", head, hub.transpose),
    ]


def vision_rules(linears: dict[str, str], norms: Sequence[Rule] = ()) -> list[Rule]:
    """Build the key map of the vision tower's embedding and blocks.

    Args:
      linears: the checkpoint's name of each Linear of a block's MLP -> our name.
      norms: further rules of a family; they are tried first.
    """
    before = r"(?:model\.)?visual\."
    layer, block = before + r"blocks\.(\d+)\.", r"vision.blocks[\1]."
    qkv = [block + f"attention.{part}" for part in ("query", "key", "value")]
    return [
        *norms,
        Rule(
            before + r"patch_embed\.proj\.weight",
            "vision.patches.project.kernel",
            lambda array: array.reshape(len(array), -1).T,
        ),
        Rule(before + r"patch_embed\.proj\.bias", "vision.patches.project.bias"),
        *hub.fused(layer + r"attn\.qkv", qkv),
        *hub.linear(layer + r"attn\.proj", block + "attention.out"),
        *hub.layer_norm(layer + "norm1", block + "attention_norm"),
        *hub.layer_norm(layer + "norm2", block + "mlp_norm"),
        *(
            rule
            for theirs, ours in linears.items()
            for rule in hub.linear(layer + rf"mlp\.{theirs}", block + f"mlp.{ours}")
        ),
    ]


def same_image(patches: Patches) -> jax.Array:
    """Build the attention mask within images, bool [B, P, P]."""
    return patches.image[:, :, None] == patches.image[:, None, :]
