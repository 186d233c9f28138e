"""Qwen3-VL (Bai et al. 2025): a ViT with learned positions, and DeepStack.

The states of a few early layers of the vision tower are also merged to tokens and added to the
first layers of the decoder at the image's positions (DeepStack, Meng et al. 2024).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.encoders import layers
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.checkpoints.hub import Rule
from mmjax.encoders.towers.qwen2_vl import Merger
from mmjax.encoders.vlm import qwen_vl, rotary
from mmjax.encoders.vlm.decoder import Config, Decoder
from mmjax.encoders.vlm.qwen_tower import Kind, tower
from mmjax.encoders.vlm.qwen_vl import Patches, QwenVl
from mmjax.encoders.vlm.rotary import Rotary

EPSILON = 1e-6  # of the vision tower's norms


@dataclass(frozen=True)
class VisionConfig:
    """Shape of the vision tower, by the names of config.json.

    Fields that config.json omits take transformers' defaults.
    """

    depth: int = 27
    hidden_size: int = 1152
    hidden_act: str = "gelu_pytorch_tanh"
    intermediate_size: int = 4304
    num_heads: int = 16
    patch_size: int = 16
    out_hidden_size: int = 3584  # of the decoder
    num_position_embeddings: int = 2304  # a square of 48 x 48
    deepstack_visual_indexes: Sequence[int] = (8, 16, 24)

    def __post_init__(self) -> None:
        deep = list(self.deepstack_visual_indexes)
        if not deep or deep != sorted(set(deep) & set(range(self.depth))):
            raise ValueError(
                f"deepstack_visual_indexes {deep} are not layers of {self.depth} in their order"
            )


class Vision(nnx.Module):
    """Vision tower: patches with learned positions, rotary blocks, mergers.

    Queries and keys are rotated by row and column.
    """

    def __init__(self, config: VisionConfig, mean: Any, std: Any, *, rngs: nnx.Rngs):
        width, out = config.hidden_size, config.out_hidden_size
        self.depth, self.deep = config.depth, tuple(config.deepstack_visual_indexes)
        self.turns = rotary.grid(width // config.num_heads)
        self.patches = qwen_vl.PatchEmbed(config.patch_size, width, mean, std, bias=True, rngs=rngs)
        self.positions = layers.Embedding(config.num_position_embeddings, width, rngs=rngs)
        self.blocks = layers.stack(
            lambda rngs: layers.Block(
                width,
                config.num_heads,
                config.intermediate_size,
                activation=config.hidden_act,
                epsilon=EPSILON,
                norm_first=True,
                rngs=rngs,
            ),
            config.depth,
            rngs,
        )
        self.merger = Merger(layers.layer_norm(width, EPSILON, rngs=rngs), width, out, rngs=rngs)

        def deeper(rngs: nnx.Rngs) -> Merger:
            norm = layers.layer_norm(4 * width, EPSILON, rngs=rngs)
            return Merger(norm, width, out, together=True, rngs=rngs)

        self.mergers = layers.stack(deeper, len(self.deep), rngs)

    def __call__(self, patches: Patches) -> tuple[jax.Array, jax.Array]:
        x = self.patches(patches.pixels)
        x = x + interpolate(self.positions.table[...], patches).astype(x.dtype)
        mask = qwen_vl.same_image(patches)
        rotations = rotary.turn(self.turns, patches.at)
        count = len(self.deep)
        slots = np.full(self.depth, count)  # out of range: a layer's states are dropped
        slots[list(self.deep)] = np.arange(count)

        def layer(block: layers.Block, carry: Any, place: jax.Array) -> tuple[Any, None]:
            x, kept = carry
            x = block(x, mask, by=rotations)
            return (x, kept.at[place].set(x, mode="drop")), None

        kept = jnp.zeros((count, *x.shape), x.dtype)
        (x, kept), _ = layers.over(self.blocks, layer, (x, kept), jnp.array(slots))
        _, added = layers.over(self.mergers, lambda merge, _, x: (None, merge(x)), None, kept)
        return self.merger(x), added


def interpolate(table: jax.Array, patches: Patches) -> jax.Array:
    """Interpolate a square table of positions bilinearly over each image.

    The corners of the table are at the corners of the image.

    Args:
      table: [S * S, V], row by row.

    Returns:
      The position of each patch, float32 [B, P, V].
    """
    side = math.isqrt(len(table))
    coordinates = patches.at * (side - 1) / jnp.maximum(patches.grid - 1, 1)  # [B, 2, P]
    low = jnp.floor(coordinates).astype(jnp.int32)
    fraction = coordinates - low

    def corner(down: int, right: int) -> jax.Array:
        row, column = (
            jnp.minimum(low[:, axis] + step, side - 1) for axis, step in enumerate((down, right))
        )
        weight: Any = 1.0
        for axis, step in enumerate((down, right)):
            weight = weight * (fraction[:, axis] if step else 1 - fraction[:, axis])
        return weight[:, :, None] * jnp.take(table, row * side + column, axis=0)

    total: Any = sum(corner(down, right) for down in (0, 1) for right in (0, 1))
    return total


def turns(config: Config, given: dict[str, Any]) -> Rotary:
    """Return the rotary positions of the decoder.

    Raises:
      InputError: what `qwen_vl.rope` raises.
    """
    theta, sections = qwen_vl.rope(config, given, 5e5, (24, 20, 20))
    return rotary.interleaved(config.head_dim, theta, sections)


def key_map(config: Config) -> list[Rule]:
    prefix = r"(?:model\.)?visual\."

    def merger(source: str, target: str) -> list[Rule]:
        return [
            *hub.layer_norm(prefix + source + r"\.norm", target + ".norm"),
            *hub.linear(prefix + source + r"\.linear_fc1", target + ".up"),
            *hub.linear(prefix + source + r"\.linear_fc2", target + ".down"),
        ]

    return [
        *qwen_vl.vision_rules({"linear_fc1": "up", "linear_fc2": "down"}),
        *hub.embedding(prefix + "pos_embed", "vision.positions"),
        *merger("merger", "vision.merger"),
        *merger(r"deepstack_merger_list\.(\d+)", r"vision.mergers[\1]"),
        *qwen_vl.text_rules(config),
    ]


def build(config: Config, vision: VisionConfig, turns: Rotary, mean: Any, std: Any) -> QwenVl:
    rngs = nnx.Rngs(0)
    return QwenVl(Vision(vision, mean, std, rngs=rngs), Decoder(config, turns, rngs=rngs))


KIND = Kind(
    model_types=("qwen3_vl",),
    vision=VisionConfig,
    text={"head_dim": 128, "head_norm": True, "bias": False},
    turns=turns,
    build=build,
    key_map=key_map,
    pixels={
        "shortest_edge": 256 * 256,
        "longest_edge": 4096 * 4096,
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
    },
)
MODEL_TYPES = KIND.model_types  # by these `auto` chooses the encoder
load = partial(tower, KIND)
