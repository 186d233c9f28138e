"""What the Qwen vision-language models share: patches, positions, the decoder and its key map.

An image becomes patches in the order of the merger: the four patches of each 2 x 2 square together,
squares row by row. Each square ends as one token. A still image stands for two frames of a film, so
the patch embedding's kernel is summed over its two frames: half the work, the same result.
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
LONGEST = 200  # times as long as it is wide, or the other way: transformers refuses more
NUMBERS = (  # that config.json must give
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)

C = TypeVar("C")


class Patches(NamedTuple):
    """The patches of a row's images, padded to P; with a leading B once in a batch."""

    pixels: Any  # uint8 [P, 3 * patch * patch], channels first
    image: Any  # int [P] which image of the row, from 1; 0 is padding
    at: Any  # int [2, P] row and column in the image's grid of patches
    grid: Any  # int [2, P] height and width of that grid


class QwenVl(nnx.Module):
    """A vision tower (patches to image tokens, and what it adds to early layers) and a decoder."""

    def __init__(self, vision: nnx.Module, text: decoder.Decoder):
        self.vision, self.decoder = vision, text

    def look(self, patches: Patches) -> tuple[jax.Array, jax.Array | None]:
        """Image tokens [B, P / 4, D]; for the first n layers what is added there [n, B, P/4, D]."""
        return self.vision(patches)


class PatchEmbed(nnx.Module):
    """Normalises uint8 pixels and projects each patch."""

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
        """pixels: uint8 [B, P, 3 * size * size], to [B, P, V]."""
        kernel = self.project.kernel[...]
        area = self.size**2
        # As transformers: the affine map in float32, then whatever the tower computes in.
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
    """The patches of one PIL image, resized as `smart_size` says.

    Raises:
      ValueError: its sides differ too much.
    """
    height, width = smart_size(image.height, image.width, 2 * patch, shortest, longest)
    pixels = np.asarray(image.resize((width, height), resample))  # [H, W, 3]
    rows, columns = height // patch, width // patch
    # [rows / 2, 2, patch, columns / 2, 2, patch, 3] to squares of 2 x 2 patches, channels first.
    cut = pixels.reshape(rows // 2, 2, patch, columns // 2, 2, patch, 3)
    cut = cut.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, -1)
    at = np.indices((rows, columns)).reshape(2, rows // 2, 2, columns // 2, 2)
    at = at.transpose(0, 1, 3, 2, 4).reshape(2, -1).astype(np.int32)
    grid = np.broadcast_to(np.array([[rows], [columns]], np.int32), at.shape)
    return Patches(cut, np.ones(len(cut), np.int32), at, grid)


def smart_size(
    height: int, width: int, factor: int, shortest: int, longest: int
) -> tuple[int, int]:
    """Height and width that `factor` divides, nearly of the same shape, of a bounded area.

    Args:
      shortest, longest: the least and the largest area in pixels.

    Raises:
      ValueError: one side is over 200 times the other.
    """
    if max(height, width) > LONGEST * min(height, width):
        raise ValueError(f"{height} x {width} pixels: one side is over {LONGEST} times the other")
    # Either may be 0 here: the area then is too small, and both are stretched.
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
    """M-RoPE's time, row and column of each token, int32 [3, L]; the next is one past the largest.

    Text goes on by one on all three; an image's tokens share a time and have rows and columns, and
    the text behind it begins after the longer of its sides.

    Args:
      parts: a number of text tokens, or an image's rows and columns of tokens, in their order.
    """
    found, after = [np.zeros((3, 0), np.int32)], 0
    for part in parts:
        if isinstance(part, tuple):
            places = np.indices((1, *part)).reshape(3, -1)
        else:
            places = np.broadcast_to(np.arange(part), (3, part))
        found.append(after + places)
        after = int(found[-1].max(initial=after - 1)) + 1
    return np.concatenate(found, axis=1, dtype=np.int32)


def text_part(given: dict[str, Any]) -> dict[str, Any]:
    """What config.json says of the decoder: older checkpoints have it flat, newer ones nested."""
    return {**given, **(given.get("text_config") or {})}


def text_config(folder: Path, given: dict[str, Any], **defaults: Any) -> decoder.Config:
    """The decoder's part of config.json; `defaults` are what it leaves out.

    Raises:
      InputError: it lacks a number that has no default, or asks for a sliding window.
    """
    about = text_part(given)
    if about.get("use_sliding_window"):
        raise InputError(f"{folder} asks for a sliding window, which is not supported")
    names = decoder.Config.__dataclass_fields__
    found = {**defaults, **{name: about[name] for name in names if about.get(name) is not None}}
    if about.get("attention_bias"):
        found |= {"bias": True, "out_bias": True}
    found["tie_word_embeddings"] = bool(
        given.get("tie_word_embeddings") or about.get("tie_word_embeddings")
    )
    lacking = [name for name in NUMBERS if name not in found]
    if lacking:
        raise InputError(f"{folder}/config.json says no {', '.join(lacking)} of its text model")
    found.setdefault("num_key_value_heads", found["num_attention_heads"])
    found.setdefault("head_dim", found["hidden_size"] // found["num_attention_heads"])
    return decoder.Config(**found)


def vision_config(folder: Path, kind: type[C], given: dict[str, Any]) -> C:
    """The vision tower's part of config.json; what it leaves out keeps its default.

    Raises:
      InputError: it asks for what is not supported.
    """
    about = given.get("vision_config") or {}
    fixed = {"in_channels": 3, "spatial_merge_size": 2, "temporal_patch_size": 2}
    for name, value in fixed.items():
        if about.get(name, value) != value:
            raise InputError(f"{folder} has {name} {about[name]}; only {value} is supported")
    names = kind.__dataclass_fields__  # type: ignore[attr-defined]
    try:
        return kind(**{name: about[name] for name in names if about.get(name) is not None})
    except ValueError as error:
        raise InputError(f"{folder}/config.json: {error}") from None


def rope(
    config: decoder.Config, given: dict[str, Any], theta: float, sections: Sequence[int]
) -> tuple[float, list[int]]:
    """The base and M-RoPE's sections, by whichever of their three names they come.

    Args:
      theta, sections: what they are where config.json, `given`, does not say.

    Raises:
      InputError: the window was extended (YaRN and the like), or the sections do not fill a head.
    """
    about = text_part(given)
    scaling = about.get("rope_parameters") or about.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in ("default", "mrope"):
        raise InputError(f"config.json asks for {kind} rotary positions, which are not supported")
    base = scaling.get("rope_theta") or about.get("rope_theta") or theta
    found = list(scaling.get("mrope_section") or sections)
    if 2 * sum(found) != config.head_dim:
        raise InputError(f"config.json has mrope_section {found} for heads {config.head_dim} wide")
    return float(base), found


def text_rules(config: decoder.Config) -> list[Rule]:
    """Names of the decoder, with `model.` and `language_model.` before them or not."""
    before = r"(?:model\.)?(?:language_model\.)?"
    # A tied one is the embedding again, although some save it.
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
    """Names of the vision tower's embedding and blocks.

    Args:
      linears: the checkpoint's name of each Linear of a block's MLP -> ours.
      norms: rules of what else a family has; these are looked at first.
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
    """Which patches may look at each other, bool [B, P, P]."""
    return patches.image[:, :, None] == patches.image[:, None, :]
