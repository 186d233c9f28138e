"""Qwen2.5-VL (Bai et al. 2025): Qwen2-VL with window attention for images.

Most layers of the vision tower attend within windows. A window is `window_size` pixels wide and
high. Patches are sorted by window once, so that a window is a run of neighbours; the tokens are put
back into the image's order at the end.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.encoders import layers
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.checkpoints.hub import Rule
from mmjax.encoders.towers import qwen2_vl
from mmjax.encoders.vlm import qwen_vl, rotary
from mmjax.encoders.vlm.decoder import Config, Decoder, GatedMlp, RmsNorm
from mmjax.encoders.vlm.qwen_tower import tower
from mmjax.encoders.vlm.qwen_vl import Patches, QwenVl
from mmjax.encoders.vlm.rotary import Rotary, Turn

EPSILON = 1e-6  # of the vision tower's norms

Look = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # (q, k, v) [B, P, H, d] to q's shape


@dataclass(frozen=True)
class VisionConfig:
    """Shape of the vision tower, by the names of config.json.

    Fields that config.json omits take transformers' defaults.
    """

    depth: int = 32
    hidden_size: int = 3584
    hidden_act: str = "silu"
    intermediate_size: int = 3420
    num_heads: int = 16
    patch_size: int = 14
    window_size: int = 112  # pixels
    out_hidden_size: int = 3584  # of the decoder
    fullatt_block_indexes: Sequence[int] = (7, 15, 23, 31)

    def __post_init__(self) -> None:
        if self.window_size < 2 * self.patch_size:
            raise ValueError(f"windows of {self.window_size} pixels are smaller than a token")


class Vision(nnx.Module):
    """Vision tower: patches, blocks with full or window attention, merger."""

    def __init__(self, config: VisionConfig, mean: Any, std: Any, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.side = 2 * (config.window_size // (2 * config.patch_size))  # of a window, in patches
        self.full = tuple(n in config.fullatt_block_indexes for n in range(config.depth))
        self.turns = rotary.grid(width // config.num_heads)
        self.patches = qwen_vl.PatchEmbed(config.patch_size, width, mean, std, rngs=rngs)
        self.blocks = layers.stack(lambda rngs: Block(config, rngs=rngs), config.depth, rngs)
        norm = RmsNorm(width, EPSILON, rngs=rngs)
        self.merger = qwen2_vl.Merger(norm, width, config.out_hidden_size, rngs=rngs)

    def __call__(self, patches: Patches) -> tuple[jax.Array, None]:
        patches, window, order = by_window(patches, self.side)
        x = self.patches(patches.pixels)
        rotations = rotary.turn(self.turns, patches.at)
        mask = qwen_vl.same_image(patches)

        def whole(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return layers.attend(q, k, v, mask)

        def inside(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return within(q, k, v, window, self.side**2)

        def layer(block: Block, x: jax.Array, full: jax.Array) -> tuple[jax.Array, None]:
            return block(x, rotations, lambda *qkv: jax.lax.cond(full, whole, inside, *qkv)), None

        x, _ = layers.over(self.blocks, layer, x, jnp.array(self.full))
        inverse = jnp.argsort(order)[:, :, None]
        return jnp.take_along_axis(self.merger(x), inverse, axis=1), None


class Block(nnx.Module):
    """Pre-norm transformer block: attention and gated MLP with RMSNorm.

    Each has an RMSNorm before it and a residual around it.
    """

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        width, hidden = config.hidden_size, config.intermediate_size
        self.attention = layers.Attention(width, config.num_heads, rngs=rngs)
        self.attention_norm = RmsNorm(width, EPSILON, rngs=rngs)
        self.mlp = GatedMlp(width, hidden, config.hidden_act, bias=True, rngs=rngs)
        self.mlp_norm = RmsNorm(width, EPSILON, rngs=rngs)

    def __call__(self, x: jax.Array, by: Turn, look: Look) -> jax.Array:
        """Apply the block to x [B, P, V]; `look` computes the attention."""
        attended = look(*self.attention.project(self.attention_norm(x), by=by))
        x = x + self.attention.out(attended.reshape(x.shape))
        return x + self.mlp(self.mlp_norm(x))


def by_window(patches: Patches, side: int) -> tuple[Patches, jax.Array, jax.Array]:
    """Sort patches so that those of a window are contiguous.

    Args:
      side: of a window, in patches.

    Returns:
      The patches; the window of each, int [B, P]; the earlier index of each 2 x 2 square, int
      [B, P / 4].
    """
    row, column = patches.at[:, 0] // side, patches.at[:, 1] // side
    window = (patches.image << 24) + (row << 12) + column  # a side has fewer than 4,096 windows
    order = jnp.argsort(window[:, ::4], axis=1)
    indices = (4 * order[:, :, None] + jnp.arange(4)[None, None]).reshape(window.shape)

    def move(one: Patches, at: jax.Array) -> Patches:
        return Patches(one.pixels[at], one.image[at], one.at[:, at], one.grid[:, at])

    return jax.vmap(move)(patches, indices), jnp.take_along_axis(window, indices, axis=1), order


def within(q: jax.Array, k: jax.Array, v: jax.Array, window: jax.Array, size: int) -> jax.Array:
    """Compute attention of each patch to those of its window.

    Patches of a window are contiguous and at most `size`. So a block of `size` patches attends only
    to itself and to the blocks before and after it: the work is P x 3 size, not P x P.

    Args:
      q, k, v: [B, P, H, d].
      window: int [B, P], not negative.
    """
    batch, count = window.shape
    blocks = -(-count // size)

    def cut(array: jax.Array, fill: int = 0) -> jax.Array:  # [B, 1 + blocks + 1, size, ...]
        ends = (size, (blocks + 1) * size - count)
        widths = ((0, 0), ends, *((0, 0),) * (array.ndim - 2))
        padded = jnp.pad(array, widths, constant_values=fill)
        return padded.reshape(batch, blocks + 2, size, *array.shape[2:])

    def around(cuts: jax.Array) -> jax.Array:  # [B * blocks, 3 * size, ...]
        neighbours = jnp.concatenate([cuts[:, :-2], cuts[:, 1:-1], cuts[:, 2:]], axis=2)
        return neighbours.reshape(batch * blocks, 3 * size, *neighbours.shape[3:])

    def own(cuts: jax.Array) -> jax.Array:  # [B * blocks, size, ...]
        return cuts[:, 1:-1].reshape(batch * blocks, *cuts.shape[2:])

    windows = cut(window, -1)
    mask = own(windows)[:, :, None] == around(windows)[:, None, :]
    attended = layers.attend(own(cut(q)), around(cut(k)), around(cut(v)), mask)
    return attended.reshape(batch, blocks * size, *q.shape[2:])[:, :count]


def key_map(config: Config) -> list[Rule]:
    merger = r"(?:model\.)?visual\.merger\."
    return [
        *qwen_vl.vision_rules({name + "_proj": name for name in ("gate", "up", "down")}),
        Rule(merger + r"ln_q\.weight", "vision.merger.norm.scale"),
        *hub.linear(merger + r"mlp\.0", "vision.merger.up"),
        *hub.linear(merger + r"mlp\.2", "vision.merger.down"),
        *qwen_vl.text_rules(config),
    ]


def build(config: Config, vision: VisionConfig, turns: Rotary, mean: Any, std: Any) -> QwenVl:
    rngs = nnx.Rngs(0)
    return QwenVl(Vision(vision, mean, std, rngs=rngs), Decoder(config, turns, rngs=rngs))


KIND = qwen2_vl.KIND._replace(
    model_types=("qwen2_5_vl",), vision=VisionConfig, build=build, key_map=key_map
)
MODEL_TYPES = KIND.model_types  # by these `auto` chooses the encoder
load = partial(tower, KIND)
