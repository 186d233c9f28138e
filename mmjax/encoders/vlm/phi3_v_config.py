"""Read Phi-3-vision's config.json: decoder, vision tower and LongRoPE."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.core.errors import InputError
from mmjax.encoders import layers
from mmjax.encoders.towers import clip
from mmjax.encoders.towers.vit import read_fields
from mmjax.encoders.vlm import decoder, qwen_vl
from mmjax.encoders.vlm.rotary import Rotary

MODEL_NAME = "openai/clip-vit-large-patch14-336"  # the only supported vision tower
ROPE = {  # keys that rope_scaling may have
    "type",
    "rope_type",
    "rope_theta",
    "short_factor",
    "long_factor",
    "original_max_position_embeddings",
}


@dataclass(frozen=True)
class VisionConfig(clip.VisionConfig):
    """Configuration of the vision tower, by default CLIP ViT-L/14-336.

    config.json only names that one; its vision_config may describe a smaller one.
    """

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    image_size: int = 336
    patch_size: int = 14
    layer_idx: int = -2  # number of the hidden state that is read; 0 is the embeddings

    @property
    def depth(self) -> int:
        """Number of blocks that are run."""
        return self.layer_idx % (self.num_hidden_layers + 1)

    @property
    def merged(self) -> int:
        """Tokens along a crop's side."""
        return self.image_size // self.patch_size // 2


def text_config(folder: Path, given: dict[str, Any]) -> decoder.Config:
    """Read the decoder's configuration from config.json.

    Args:
      folder: of the checkpoint, for error messages.
      given: the content of config.json.

    Raises:
      InputError: a number is missing, or a setting is not supported.
    """
    config = qwen_vl.text_config(folder, given, bias=False, rms_norm_eps=1e-5)
    if given.get("attention_bias"):
        raise InputError(f"{folder} asks for biases in its attention, which are not supported")
    if config.hidden_act not in layers.ACTIVATIONS:
        raise InputError(f"{folder} has the activation {config.hidden_act!r}, which nobody knows")
    return config


def vision_config(folder: Path, given: dict[str, Any]) -> VisionConfig:
    """Read the vision tower's configuration from config.json.

    Args:
      folder: of the checkpoint, for error messages.
      given: the content of config.json.

    Raises:
      InputError: the tower is not CLIP ViT-L/14-336 (nor CLIP by `vision_config`), or its patches
        become tokens in an unsupported way.
    """
    vision = given.get("vision_config") or {}
    parts = {
        "img_processor": {"type_feature": "patch", **(given.get("img_processor") or {})},
        "embd_layer": given.get("embd_layer") or {},
    }
    config = read_fields(VisionConfig, {**parts["img_processor"], **vision})
    supported = {
        "img_processor": {
            "name": "clip_vision_model",
            **({} if vision else {"model_name": MODEL_NAME}),
            "image_dim_out": config.hidden_size,
            "num_img_tokens": config.merged**2,
            "type_feature": "patch",
        },
        "embd_layer": {
            "embedding_cls": "image",
            "hd_transform_order": "sub_glb",
            "projection_cls": "mlp",
            "use_hd_transform": True,
            "with_learnable_separator": True,
        },
    }
    for part, names in supported.items():
        for name, value in names.items():
            if parts[part].get(name) != value:
                raise InputError(
                    f"{folder} has {name} {parts[part].get(name)!r} in {part}; only {value!r} is "
                    "supported"
                )
    if config.image_size % (2 * config.patch_size):
        raise InputError(
            f"{folder} has squares of {config.image_size} pixels, which pairs of patches of "
            f"{config.patch_size} do not fill"
        )
    if not 0 < abs(config.layer_idx) <= config.num_hidden_layers:
        raise InputError(
            f"{folder} reads layer {config.layer_idx} of CLIP, which has {config.num_hidden_layers}"
        )
    return config


def turns(folder: Path, config: decoder.Config, given: dict[str, Any], window: int) -> Rotary:
    """Build LongRoPE for up to `window` tokens, prompt plus answer.

    All rows use the short factors if `window` is at most the original training window (4096), else
    the long ones. The published code chooses at every call, by the longest row so far. Up to 4096
    the result is the same. Beyond, its short rows use the short factors, and an answer that grows
    past 4096 reads cached keys that were rotated with the other factors.

    Args:
      folder: of the checkpoint, for error messages.
      config: of the decoder.
      given: the content of config.json.
      window: tokens of the longest prompt plus its answer.

    Raises:
      InputError: `window` is longer than the model's, or positions are of another kind.
    """
    scaling = given.get("rope_scaling") or given.get("rope_parameters") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    theta = float(scaling.get("rope_theta") or given.get("rope_theta") or 10_000)
    longest = int(given.get("max_position_embeddings") or 4096)
    original = scaling.get("original_max_position_embeddings")
    original = int(original or given.get("original_max_position_embeddings") or longest)
    limit = min(longest, given.get("sliding_window") or longest)
    if window > limit:
        raise InputError(f"{folder} reads {limit} tokens at once, not {window}")
    unknown = [name for name in scaling.keys() - ROPE if scaling[name] not in (None, 1)]
    if kind not in ("su", "longrope", "default") or unknown:
        raise InputError(
            f"{folder} has rotary positions of kind {kind!r} {' '.join(sorted(unknown))}; only su "
            "(longrope) with a short_factor and a long_factor is supported"
        )
    half, scale = config.head_dim // 2, 1.0
    factors = np.ones(half, np.float32)
    if kind != "default":
        name = "short_factor" if window <= original else "long_factor"
        factors = np.array(scaling.get(name) or [], np.float32)
        if factors.shape != (half,):
            raise InputError(f"{folder} has {factors.size} numbers as {name}; heads take {half}")
        if longest > original:
            scale = math.sqrt(1 + math.log(longest / original) / math.log(original))
    steps = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    frequencies = 1 / (factors * np.float32(theta) ** steps)
    return Rotary(tuple(frequencies.tolist()), (0,) * half, scale)
