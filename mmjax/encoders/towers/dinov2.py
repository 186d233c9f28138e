"""DINOv2 (Oquab et al. 2024), with or without registers.

Registers are by Darcet et al. 2024. DINOv2 is a ViT whose residuals are scaled per channel; the
largest has a gated (SwiGLU) MLP. Checkpoints were trained at 518 pixels and read 224, so their
positions are always interpolated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.core.errors import InputError
from mmjax.encoders import outputs
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.checkpoints.hub import Rule
from mmjax.encoders.core import Tower
from mmjax.encoders.inputs import images
from mmjax.encoders.inputs.pixels import ImageOptions
from mmjax.encoders.layers import Attention, Mlp, layer_norm
from mmjax.encoders.outputs import Outputs
from mmjax.encoders.towers.vit import Tokens, read_fields, token_rules

MODEL_TYPES = ("dinov2", "dinov2_with_registers")  # of config.json


@dataclass(frozen=True)
class Config:
    """Shape of the encoder, by the names of config.json.

    Fields that config.json omits take transformers' defaults.
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: float = 4
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    image_size: int = 224
    patch_size: int = 14
    use_swiglu_ffn: bool = False
    num_register_tokens: int = 0

    @classmethod
    def read(cls, config: dict[str, Any]) -> "Config":
        """Read the shape from config.json.

        Raises:
          InputError: config.json asks for a variant that this tower does not compute.
        """
        if not config.get("qkv_bias", True):
            raise InputError("DINOv2 without qkv_bias is not supported")
        if config.get("model_type") == "dinov2_with_registers":
            config = {"num_register_tokens": 4, "patch_size": 16, **config}
        return read_fields(cls, config)


class SwiGlu(nnx.Module):
    """SwiGLU MLP, (silu(x W) · (x V)) U (Shazeer 2020).

    W and V are one matrix, `up`; U is `down`.
    """

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs):
        self.up = nnx.Linear(width, 2 * hidden, rngs=rngs)
        self.down = nnx.Linear(hidden, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, up = jnp.split(self.up(x), 2, axis=-1)
        return self.down(jax.nn.silu(gate) * up)


class Block(nnx.Module):
    """Pre-norm transformer block with per-channel residual scales (Touvron et al. 2021)."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, hidden = config.hidden_size, int(config.hidden_size * config.mlp_ratio)
        self.attention = Attention(width, config.num_attention_heads, rngs=rngs)
        self.attention_norm = layer_norm(width, config.layer_norm_eps, rngs=rngs)
        self.attention_scale = nnx.Param(jnp.ones(width))
        if config.use_swiglu_ffn:
            # Two thirds of the width, as it has three matrices; rounded up to a multiple of 8.
            self.mlp: SwiGlu | Mlp = SwiGlu(width, (int(hidden * 2 / 3) + 7) // 8 * 8, rngs=rngs)
        else:
            self.mlp = Mlp(width, hidden, config.hidden_act, rngs=rngs)
        self.mlp_norm = layer_norm(width, config.layer_norm_eps, rngs=rngs)
        self.mlp_scale = nnx.Param(jnp.ones(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply attention and MLP to x [B, L, D]."""
        x = x + self.attention(self.attention_norm(x)) * self.attention_scale[...][None, None]
        return x + self.mlp(self.mlp_norm(x)) * self.mlp_scale[...][None, None]


class Dinov2(nnx.Module):
    """DINOv2's encoder."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, registers = config.hidden_size, config.num_register_tokens
        self.tokens = Tokens(
            width, config.image_size, config.patch_size, antialias=registers > 0, rngs=rngs
        )
        self.registers = nnx.Param(jnp.zeros((registers, width))) if registers else None
        self.blocks = nnx.List(Block(config, rngs=rngs) for _ in range(config.num_hidden_layers))
        self.norm = layer_norm(width, config.layer_norm_eps, rngs=rngs)

    def __call__(self, pixels: jax.Array) -> Outputs:
        """Return the hidden states of a batch of images.

        Registers follow the class token.

        Args:
          pixels: [B, H, W, 3].

        Returns:
          hidden_states.0 (the embeddings) to hidden_states.N, last_hidden_state (normalised)
          [B, L, D] and pooler_output [B, D], its class token.
        """
        tokens = self.tokens(pixels)
        if self.registers is not None:
            registers = self.registers[...][None]  # [1, R, D]
            registers = jnp.broadcast_to(registers, (len(tokens), *registers.shape[1:]))
            tokens = jnp.concatenate([tokens[:, :1], registers, tokens[:, 1:]], axis=1)
        hidden = [tokens]
        for block in self.blocks:
            hidden.append(block(hidden[-1]))
        last = self.norm(hidden[-1])
        return {
            **outputs.states(hidden),
            "last_hidden_state": last,
            "pooler_output": last[:, 0],
        }


def key_map() -> list[Rule]:
    """Return the key map of Dinov2Model.

    Names come with or without the prefix that task models add.
    """
    model = r"(?:dinov2(?:_with_registers)?\.)?"
    layer = model + r"encoder\.layer\.(\d+)\."
    return [
        Rule(r"classifier\..*", None),
        *token_rules(model + "embeddings"),
        Rule(model + r"embeddings\.register_tokens", "registers", lambda array: array[0]),
        *hub.linear(layer + r"attention\.attention\.(query|key|value)", r"blocks.\1.attention.\2"),
        *hub.linear(layer + r"attention\.output\.dense", r"blocks.\1.attention.out"),
        *hub.layer_norm(layer + "norm1", r"blocks.\1.attention_norm"),
        Rule(layer + r"layer_scale1\.lambda1", r"blocks.\1.attention_scale"),
        *hub.linear(layer + r"mlp\.(?:fc1|weights_in)", r"blocks.\1.mlp.up"),
        *hub.linear(layer + r"mlp\.(?:fc2|weights_out)", r"blocks.\1.mlp.down"),
        *hub.layer_norm(layer + "norm2", r"blocks.\1.mlp_norm"),
        Rule(layer + r"layer_scale2\.lambda1", r"blocks.\1.mlp_scale"),
        *hub.layer_norm(model + "layernorm", "norm"),
    ]


def load(
    *,
    weights: str = "facebook/dinov2-base",
    revision: str | None = None,
    layers: Sequence[str | int] = (),
    dtype: str = "float32",
    options: ImageOptions = ImageOptions(),
) -> Tower:
    """Build the image tower of a DINOv2 checkpoint.

    Args:
      weights: folder or hub id.
      layers: outputs by name or number; pooler_output, the class token, unless given.
      dtype: of parameters and computation, float32 or bfloat16.

    Raises:
      InputError: the checkpoint is missing, damaged or of another architecture, or a layer is
        unknown.
    """
    checkpoint = hub.find(weights, revision)
    config = Config.read(hub.read_config(checkpoint.folder, MODEL_TYPES))
    graph, params = hub.load_module(
        lambda: Dinov2(config, rngs=nnx.Rngs(0)), checkpoint.weights, key_map(), jnp.dtype(dtype)
    )
    return images.tower(
        graph,
        params,
        lambda module, pixels: module(pixels),
        folder=checkpoint.folder,
        options=options,
        layers=layers,
        default="pooler_output",
        about={"encoder": f"dinov2:{checkpoint.name}", "revision": checkpoint.revision},
    )
