"""ViT (Dosovitskiy et al. 2021) and the parts that related models share.

A class token and the image's patches, each with a learned position, pass through pre-norm
transformer blocks. Positions are interpolated for another image size than the trained one. Related
models share the tokens of patches and positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.core.errors import InputError
from mmjax.encoders import outputs
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.checkpoints.hub import Rule
from mmjax.encoders.core import Tower
from mmjax.encoders.inputs import images
from mmjax.encoders.inputs.pixels import ImageOptions
from mmjax.encoders.layers import ACTIVATIONS, Block, Patches, layer_norm
from mmjax.encoders.outputs import Outputs

MODEL_TYPES = ("vit",)  # of config.json

C = TypeVar("C")


@dataclass(frozen=True)
class Config:
    """Shape of the encoder, by the names of config.json.

    Fields that config.json omits take transformers' defaults.
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    image_size: int = 224
    patch_size: int = 16
    pooler_output_size: int | None = None  # hidden_size unless given

    @classmethod
    def read(cls, config: dict[str, Any]) -> Self:
        """Read the shape from config.json.

        Raises:
          InputError: config.json asks for a variant that this tower does not compute.
        """
        if not config.get("qkv_bias", True) or config.get("pooler_act", "tanh") != "tanh":
            raise InputError("ViT without qkv_bias or with another pooler_act is not supported")
        return read_fields(cls, config)


def read_fields(kind: type[C], config: dict[str, Any]) -> C:
    """Read the fields of a configuration class from config.json.

    Fields that it lacks keep their defaults.

    Raises:
      InputError: images or patches are not square or not of three channels, the activation is
        unknown, or the heads do not divide the width.
    """
    names = kind.__dataclass_fields__  # type: ignore[attr-defined]
    fields = {name: config[name] for name in names if config.get(name) is not None}
    for name in {"image_size", "patch_size"} & fields.keys():
        sides = fields[name] if isinstance(fields[name], (list, tuple)) else [fields[name]]
        if len(set(sides)) != 1:
            raise InputError(f"config.json has {name} {sides}; only square ones are supported")
        fields[name] = sides[0]
    if config.get("num_channels", 3) != 3:
        raise InputError(f"config.json has {config['num_channels']} channels; images have three")
    instance: Any = kind(**fields)
    if instance.hidden_act not in ACTIVATIONS:
        raise InputError(f"hidden_act {instance.hidden_act!r} is none of {', '.join(ACTIVATIONS)}")
    if instance.hidden_size % instance.num_attention_heads:
        raise InputError(
            f"{instance.num_attention_heads} heads do not divide a width of {instance.hidden_size}"
        )
    return instance


class Tokens(nnx.Module):
    """Class token, patches in rows from the top left, and learned positions."""

    def __init__(
        self,
        width: int,
        image: int,
        patch: int,
        *,
        bias: bool = True,
        class_token: bool = True,
        antialias: bool = False,
        rngs: nnx.Rngs,
    ):
        self.antialias = antialias
        self.patches = Patches(patch, width, bias=bias, rngs=rngs)
        init = nnx.initializers.normal(0.02)
        count = (image // patch) ** 2 + class_token
        self.positions = nnx.Param(init(rngs.params(), (count, width), jnp.float32))
        first = init(rngs.params(), (width,), jnp.float32)
        self.class_token = nnx.Param(first) if class_token else None

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Embed images [B, H, W, 3] to tokens [B, L, D].

        L is the number of patches, plus one for the class token.
        """
        patches = self.patches(pixels)  # [B, rows, columns, D]
        batch, rows, columns, width = patches.shape
        tokens, positions = patches.reshape(batch, -1, width), self.positions[...]
        if self.class_token is None:
            return tokens + resized(positions, (rows, columns), self.antialias)[None]
        first = (self.class_token[...] + positions[0]).reshape(1, 1, width)
        rest = tokens + resized(positions[1:], (rows, columns), self.antialias)[None]
        return jnp.concatenate([jnp.broadcast_to(first, (batch, 1, width)), rest], axis=1)


def resized(table: jax.Array, grid: tuple[int, int], antialias: bool = False) -> jax.Array:
    """Interpolate a square grid of positions bicubically to another grid.

    As torch's `interpolate` with align_corners=False, in float32.

    Args:
      table: [S · S, D].
      grid: rows and columns.

    Returns:
      [rows · columns, D].
    """
    side = round(len(table) ** 0.5)
    if grid == (side, side):
        return table
    square = table.reshape(side, side, -1).astype(jnp.float32)
    rows, columns = (bicubic(side, target, antialias) for target in grid)
    interpolated = jnp.einsum("ri,cj,ijd->rcd", rows, columns, square)
    return interpolated.reshape(grid[0] * grid[1], -1).astype(table.dtype)


def bicubic(source: int, target: int, antialias: bool) -> np.ndarray:
    """Return weights [target, source] of a bicubic resize (Keys 1981).

    With antialiasing the kernel (a = -1/2, as Pillow's) is stretched to the larger of the two
    spacings and what lies outside has no weight; without it (a = -3/4) the border is repeated.
    """
    spacing = source / target
    centres = (np.arange(target)[:, None] + 0.5) * spacing - 0.5
    if antialias:
        distance = (np.arange(source)[None] - centres) / max(spacing, 1)
        weights = _keys(distance, -0.5)
        return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    weights = np.zeros((target, source))
    for tap in (-1, 0, 1, 2):
        position = np.floor(centres) + tap
        index = np.clip(position, 0, source - 1).astype(int)
        np.add.at(weights, (np.arange(target)[:, None], index), _keys(position - centres, -0.75))
    return weights.astype(np.float32)


def _keys(x: np.ndarray, a: float) -> np.ndarray:
    """Evaluate Keys' piecewise cubic kernel.

    It is one at zero and zero at the other integers.
    """
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


class Vit(nnx.Module):
    """ViT's encoder; `pooler` adds a tanh layer on the class token."""

    def __init__(self, config: Config, *, pooler: bool = True, rngs: nnx.Rngs):
        width = config.hidden_size
        self.tokens = Tokens(width, config.image_size, config.patch_size, rngs=rngs)
        self.blocks = nnx.List(
            Block(
                width,
                config.num_attention_heads,
                config.intermediate_size,
                activation=config.hidden_act,
                epsilon=config.layer_norm_eps,
                norm_first=True,
                rngs=rngs,
            )
            for _ in range(config.num_hidden_layers)
        )
        self.norm = layer_norm(width, config.layer_norm_eps, rngs=rngs)
        pooled_width = config.pooler_output_size or width
        self.pooler = nnx.Linear(width, pooled_width, rngs=rngs) if pooler else None

    def __call__(self, pixels: jax.Array) -> Outputs:
        """Return the hidden states of a batch of images.

        Args:
          pixels: [B, H, W, 3].

        Returns:
          hidden_states.0 (the embeddings) to hidden_states.N, last_hidden_state (normalised)
          [B, L, D] and, with the pooler, pooler_output [B, F].
        """
        hidden = [self.tokens(pixels)]
        for block in self.blocks:
            hidden.append(block(hidden[-1]))
        last = self.norm(hidden[-1])
        results = {**outputs.states(hidden), "last_hidden_state": last}
        if self.pooler is not None:
            results["pooler_output"] = jnp.tanh(self.pooler(last[:, 0]))
        return results


def token_rules(source: str) -> list[Rule]:
    """Return rules that map ViT's and DINOv2's embeddings into `tokens`."""
    return [
        Rule(rf"{source}\.mask_token", None),  # for pre-training
        Rule(rf"{source}\.cls_token", "tokens.class_token", np.ravel),
        Rule(rf"{source}\.position_embeddings", "tokens.positions", lambda array: array[0]),
        *hub.patches(rf"{source}\.patch_embeddings\.projection", "tokens.patches"),
    ]


def key_map() -> list[Rule]:
    """Return the key map of ViTModel.

    Names come with or without the prefix `vit.` that task models add.
    """
    layer = r"(?:vit\.)?encoder\.layer\.(\d+)\."
    return [
        Rule(r"(?:classifier|decoder)\..*", None),  # heads
        *token_rules(r"(?:vit\.)?embeddings"),
        *hub.linear(layer + r"attention\.attention\.(query|key|value)", r"blocks.\1.attention.\2"),
        *hub.linear(layer + r"attention\.output\.dense", r"blocks.\1.attention.out"),
        *hub.layer_norm(layer + "layernorm_before", r"blocks.\1.attention_norm"),
        *hub.linear(layer + r"intermediate\.dense", r"blocks.\1.mlp.up"),
        *hub.linear(layer + r"output\.dense", r"blocks.\1.mlp.down"),
        *hub.layer_norm(layer + "layernorm_after", r"blocks.\1.mlp_norm"),
        *hub.layer_norm(r"(?:vit\.)?layernorm", "norm"),
        *hub.linear(r"(?:vit\.)?pooler\.dense", "pooler"),
    ]


def load(
    *,
    weights: str = "google/vit-base-patch16-224",
    revision: str | None = None,
    layers: Sequence[str | int] = (),
    dtype: str = "float32",
    options: ImageOptions = ImageOptions(),
) -> Tower:
    """Build the image tower of a ViT checkpoint.

    Args:
      weights: folder or hub id.
      layers: outputs by name or number; unless given, pooler_output where the checkpoint has a
        pooler, else the class token, last_hidden_state:cls.
      dtype: of parameters and computation, float32 or bfloat16.

    Raises:
      InputError: the checkpoint is missing, damaged or of another architecture, or a layer is
        unknown.
    """
    checkpoint = hub.find(weights, revision)
    config = Config.read(hub.read_config(checkpoint.folder, MODEL_TYPES))
    pooler = hub.has(checkpoint.weights, r"(?:vit\.)?pooler\..*")
    graph, params = hub.load_module(
        lambda: Vit(config, pooler=pooler, rngs=nnx.Rngs(0)),
        checkpoint.weights,
        key_map(),
        jnp.dtype(dtype),
    )
    return images.tower(
        graph,
        params,
        lambda module, pixels: module(pixels),
        folder=checkpoint.folder,
        options=options,
        layers=layers,
        default="pooler_output" if pooler else "last_hidden_state:cls",
        about={"encoder": f"vit:{checkpoint.name}", "revision": checkpoint.revision},
    )
