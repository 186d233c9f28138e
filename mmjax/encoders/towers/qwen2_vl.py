"""Qwen2-VL (Wang et al. 2024): a native-resolution ViT, a merger, Qwen2.

The decoder has M-RoPE. The model is the default of arXiv 2508.04571: an item's embedding is the
state of the end token of the answer that the model gives to a structured prompt.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from flax import nnx

from mmjax.encoders import layers
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.checkpoints.hub import Rule
from mmjax.encoders.vlm import qwen_vl, rotary
from mmjax.encoders.vlm.decoder import Config, Decoder
from mmjax.encoders.vlm.qwen_tower import Kind, tower
from mmjax.encoders.vlm.qwen_vl import Patches, QwenVl
from mmjax.encoders.vlm.rotary import Rotary


@dataclass(frozen=True)
class VisionConfig:
    """Shape of the vision tower, by the names of config.json.

    Fields that config.json omits take transformers' defaults.
    """

    depth: int = 32
    embed_dim: int = 1280
    hidden_size: int = 3584  # of the decoder
    hidden_act: str = "quick_gelu"
    mlp_ratio: float = 4
    num_heads: int = 16
    patch_size: int = 14

    @property
    def num_attention_heads(self) -> int:
        return self.num_heads


class Vision(nnx.Module):
    """Vision tower: patches, blocks with 2-D rotary positions, merger.

    Queries and keys are rotated by row and column.
    """

    def __init__(self, config: VisionConfig, mean: Any, std: Any, *, rngs: nnx.Rngs):
        width = config.embed_dim
        hidden = int(width * config.mlp_ratio)
        self.turns = rotary.grid(width // config.num_heads)
        self.patches = qwen_vl.PatchEmbed(config.patch_size, width, mean, std, rngs=rngs)
        self.blocks = layers.stack(
            lambda rngs: layers.Block(
                width,
                config.num_heads,
                hidden,
                activation=config.hidden_act,
                epsilon=1e-6,
                norm_first=True,
                rngs=rngs,
            ),
            config.depth,
            rngs,
        )
        norm = layers.layer_norm(width, 1e-6, rngs=rngs)
        self.merger = Merger(norm, width, config.hidden_size, rngs=rngs)

    def __call__(self, patches: Patches) -> tuple[jax.Array, None]:
        x = self.patches(patches.pixels)
        mask = qwen_vl.same_image(patches)
        rotations = rotary.turn(self.turns, patches.at)

        def layer(block: layers.Block, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return block(x, mask, by=rotations), None

        x, _ = layers.over(self.blocks, layer, x, None)
        return self.merger(x), None


class Merger(nnx.Module):
    """MLP that merges each four patches to one token.

    With `together` the four are normalised as one vector, else each on its own.
    """

    def __init__(
        self, norm: nnx.Module, width: int, out: int, *, together: bool = False, rngs: nnx.Rngs
    ):
        self.norm, self.together = norm, together
        self.up = nnx.Linear(4 * width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, out, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Merge each four patches to one token.

        x: [B, P, V], to [B, P / 4, D].
        """
        shape = len(x), x.shape[1] // 4, 4 * x.shape[2]
        x = self.norm(x.reshape(shape)) if self.together else self.norm(x).reshape(shape)
        return self.down(layers.gelu(self.up(x)))


def turns(config: Config, given: dict[str, Any]) -> Rotary:
    """Return the rotary positions of the decoder.

    Raises:
      InputError: what `qwen_vl.rope` raises.
    """
    theta, sections = qwen_vl.rope(config, given, 1e6, (16, 24, 24))
    return rotary.blocks(config.head_dim, theta, sections)


def key_map(config: Config) -> list[Rule]:
    merger = r"(?:model\.)?visual\.merger\."
    return [
        *qwen_vl.vision_rules({"fc1": "up", "fc2": "down"}),
        *hub.layer_norm(merger + "ln_q", "vision.merger.norm"),
        *hub.linear(merger + r"mlp\.0", "vision.merger.up"),
        *hub.linear(merger + r"mlp\.2", "vision.merger.down"),
        *qwen_vl.text_rules(config),
    ]


def build(config: Config, vision: VisionConfig, turns: Rotary, mean: Any, std: Any) -> QwenVl:
    rngs = nnx.Rngs(0)
    return QwenVl(Vision(vision, mean, std, rngs=rngs), Decoder(config, turns, rngs=rngs))


KIND = Kind(
    model_types=("qwen2_vl",),
    vision=VisionConfig,
    text={"rms_norm_eps": 1e-5},
    turns=turns,
    build=build,
    key_map=key_map,
    pixels={
        "shortest_edge": 56 * 56,
        "longest_edge": 28 * 28 * 1280,
        "mean": qwen_vl.MEAN,
        "std": qwen_vl.STD,
    },
)
MODEL_TYPES = KIND.model_types  # by these `auto` chooses the encoder
load = partial(tower, KIND)
