"""CLIP (Radford et al. 2021): a ViT and a causal text transformer with one space of vectors.

Vectors are what transformers' get_image_features and get_text_features give: not of unit length.
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
from mmjax.encoders.checkpoints.hub import Checkpoint, Rule
from mmjax.encoders.core import Tower
from mmjax.encoders.inputs import images, text
from mmjax.encoders.inputs.pixels import Options as ImageOptions
from mmjax.encoders.inputs.text import Options as TextOptions
from mmjax.encoders.layers import Block, Embedding, layer_norm
from mmjax.encoders.outputs import Outputs
from mmjax.encoders.towers.vit import Tokens, read_fields

MODEL_TYPES = ("clip", "clip_vision_model", "clip_text_model")  # of config.json

MODALITIES = ("image", "text")


@dataclass(frozen=True)
class VisionConfig:
    """What config.json says of the image half, by its own names; omissions are transformers'."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    image_size: int = 224
    patch_size: int = 32
    projection_dim: int = 512


@dataclass(frozen=True)
class TextConfig:
    """What config.json says of the text half, by its own names; omissions are transformers'."""

    vocab_size: int = 49408
    hidden_size: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    max_position_embeddings: int = 77
    eos_token_id: int = 49407
    projection_dim: int = 512

    def __post_init__(self) -> None:
        if not isinstance(self.eos_token_id, int):
            raise InputError(f"eos_token_id {self.eos_token_id} is not one number")


def read_half(config: dict[str, Any], half: str) -> dict[str, Any]:
    """The part of a config.json for "vision" or "text"; all of it where it is of that half alone.

    An old `vision_config_dict` stands in for all of `vision_config`, as in transformers.
    """
    if config["model_type"].endswith(f"_{half}_model"):
        return config
    given = config.get(f"{half}_config_dict")
    given = (config.get(f"{half}_config") or {}) if given is None else given
    return {**given, "projection_dim": config.get("projection_dim")}


class Vision(nnx.Module):
    """CLIP's image half: a ViT that normalises before its blocks; `projection` makes embeds."""

    def __init__(self, config: VisionConfig, *, projection: bool = True, rngs: nnx.Rngs):
        width = config.hidden_size
        self.tokens = Tokens(width, config.image_size, config.patch_size, bias=False, rngs=rngs)
        self.input_norm = layer_norm(width, config.layer_norm_eps, rngs=rngs)
        self.blocks = blocks(config, rngs=rngs)
        self.norm = layer_norm(width, config.layer_norm_eps, rngs=rngs)
        into = nnx.Linear(width, config.projection_dim, use_bias=False, rngs=rngs)
        self.projection = into if projection else None

    def __call__(self, pixels: jax.Array) -> Outputs:
        """pixels: [B, H, W, 3].

        Gives hidden_states.0 (the normalised embeddings) to hidden_states.N, last_hidden_state
        [B, L, D], pooler_output (the class token, normalised) [B, D] and, projected, image_embeds
        [B, F].
        """
        hidden = [self.input_norm(self.tokens(pixels))]
        for block in self.blocks:
            hidden.append(block(hidden[-1]))
        pooled = self.norm(hidden[-1][:, 0])
        found = {**outputs.states(hidden), "last_hidden_state": hidden[-1], "pooler_output": pooled}
        if self.projection is not None:
            found["image_embeds"] = self.projection(pooled)
        return found


class Text(nnx.Module):
    """CLIP's text half: tokens see those before them, and the text's end is its vector."""

    def __init__(self, config: TextConfig, *, projection: bool = True, rngs: nnx.Rngs):
        width = config.hidden_size
        self.end = config.eos_token_id
        self.words = Embedding(config.vocab_size, width, rngs=rngs)
        self.positions = Embedding(config.max_position_embeddings, width, rngs=rngs)
        self.blocks = blocks(config, rngs=rngs)
        self.norm = layer_norm(width, config.layer_norm_eps, rngs=rngs)
        into = nnx.Linear(width, config.projection_dim, use_bias=False, rngs=rngs)
        self.projection = into if projection else None

    def __call__(self, ids: jax.Array, mask: jax.Array) -> Outputs:
        """ids: int [B, L]; mask: bool [B, L], true at tokens.

        Gives hidden_states.0 (the embeddings) to hidden_states.N, last_hidden_state (normalised)
        [B, L, D], pooler_output (at the end of text) [B, D] and, projected, text_embeds [B, F].
        """
        length = ids.shape[1]
        hidden = [self.words(ids) + self.positions(jnp.arange(length))[None]]
        before = jnp.tril(jnp.ones((length, length), bool))[None]
        seen = before & mask.astype(bool)[:, None, :]  # [B, L, L]
        for block in self.blocks:
            hidden.append(block(hidden[-1], seen))
        last = self.norm(hidden[-1])
        # Configurations that wrongly say 2 mean the largest id, which the end of text has.
        end = (ids if self.end == 2 else ids == self.end).argmax(axis=1)
        pooled = jnp.take_along_axis(last, end[:, None, None], axis=1)[:, 0]
        found = {**outputs.states(hidden), "last_hidden_state": last, "pooler_output": pooled}
        if self.projection is not None:
            found["text_embeds"] = self.projection(pooled)
        return found


def blocks(config: Any, *, rngs: nnx.Rngs) -> nnx.List:
    """The pre-norm blocks of a configuration's shape."""
    return nnx.List(
        Block(
            config.hidden_size,
            config.num_attention_heads,
            config.intermediate_size,
            activation=config.hidden_act,
            epsilon=config.layer_norm_eps,
            norm_first=True,
            rngs=rngs,
        )
        for _ in range(config.num_hidden_layers)
    )


def block_rules(source: str, target: str = "blocks") -> list[Rule]:
    r"""Names of CLIP's and SigLIP's transformer layers; `source` ends before `layers`."""
    layer, block = source + r"layers\.(\d+)\.", target + r".\1."
    return [
        *(
            rule
            for part, ours in (("q", "query"), ("k", "key"), ("v", "value"), ("out", "out"))
            for rule in hub.linear(layer + rf"self_attn\.{part}_proj", block + f"attention.{ours}")
        ),
        *hub.layer_norm(layer + "layer_norm1", block + "attention_norm"),
        *hub.linear(layer + r"mlp\.fc1", block + "mlp.up"),
        *hub.linear(layer + r"mlp\.fc2", block + "mlp.down"),
        *hub.layer_norm(layer + "layer_norm2", block + "mlp_norm"),
    ]


def vision_rules(prefix: str) -> list[Rule]:
    """Names of CLIPVisionModel after `prefix`, into a `Vision` without its projection."""
    return [
        Rule(prefix + r"embeddings\.position_ids", None),  # a buffer that counts up
        Rule(prefix + r"embeddings\.class_embedding", "tokens.class_token"),
        Rule(prefix + r"embeddings\.position_embedding\.weight", "tokens.positions"),
        *hub.patches(prefix + r"embeddings\.patch_embedding", "tokens.patches"),
        *hub.layer_norm(prefix + "pre_layrnorm", "input_norm"),
        *block_rules(prefix + r"encoder\."),
        *hub.layer_norm(prefix + "post_layernorm", "norm"),
    ]


def text_rules(prefix: str) -> list[Rule]:
    """Names of CLIPTextModel and SiglipTextModel after `prefix`, without projection or head."""
    return [
        Rule(prefix + r"embeddings\.position_ids", None),
        *hub.embedding(prefix + r"embeddings\.token_embedding", "words"),
        *hub.embedding(prefix + r"embeddings\.position_embedding", "positions"),
        *block_rules(prefix + r"encoder\."),
        *hub.layer_norm(prefix + "final_layer_norm", "norm"),
    ]


def key_map(modality: str) -> list[Rule]:
    """Names of CLIPModel and of its halves on their own; the other half's are ignored."""
    vision = [*vision_rules(r"(?:vision_model\.)?"), *hub.linear("visual_projection", "projection")]
    words = [*text_rules(r"(?:text_model\.)?"), *hub.linear("text_projection", "projection")]
    other = (
        "text_(?:model|projection)" if modality == "image" else "vis(?:ion_model|ual_projection)"
    )
    return [
        Rule(rf"{other}\..*", None),
        Rule("logit_scale", None),
        Rule(r"classifier\..*", None),
        *(vision if modality == "image" else words),
    ]


def open_half(
    weights: str, revision: str | None, modality: str, kind: str
) -> tuple[Checkpoint, dict[str, Any]]:
    """A dual encoder's checkpoint and its half of config.json; `kind` is its model_type.

    Raises:
      InputError: no such modality or checkpoint, or one of another architecture.
    """
    if modality not in MODALITIES:
        raise InputError(f"modality {modality!r} is none of {', '.join(MODALITIES)}")
    half = "vision" if modality == "image" else "text"
    checkpoint = hub.find(weights, revision)
    config = hub.read_config(checkpoint.folder, (kind, f"{kind}_{half}_model"))
    return checkpoint, read_half(config, half)


def load(
    *,
    weights: str = "openai/clip-vit-base-patch16",
    revision: str | None = None,
    modality: str = "image",
    layers: Sequence[str | int] = (),
    dtype: str = "float32",
    image: ImageOptions = ImageOptions(),
    text_options: TextOptions = TextOptions(),
) -> Tower:
    """The image or the text tower of a checkpoint: folder or hub id.

    Args:
      modality: "image" or "text"; the other half is not read.
      layers: outputs by name or number; image_embeds or text_embeds unless given, or pooler_output
        where the checkpoint has no projection.
      dtype: of parameters and computation, float32 or bfloat16.

    Raises:
      InputError: no such checkpoint, of another architecture, or damaged; no such layer.
    """
    checkpoint, half = open_half(weights, revision, modality, "clip")
    name = "visual" if modality == "image" else "text"
    projection = hub.has(checkpoint.weights, rf"{name}_projection\.weight")
    kind, config = (Vision, VisionConfig) if modality == "image" else (Text, TextConfig)
    shape = read_fields(config, half)
    graph, params = hub.load_module(
        lambda: kind(shape, projection=projection, rngs=nnx.Rngs(0)),
        checkpoint.weights,
        key_map(modality),
        jnp.dtype(dtype),
    )
    shared = {
        "folder": checkpoint.folder,
        "layers": layers,
        "default": f"{modality}_embeds" if projection else "pooler_output",
        "about": {
            "encoder": f"clip:{checkpoint.name}",
            "revision": checkpoint.revision,
            "half": modality,
        },
    }
    if modality == "image":
        return images.tower(graph, params, lambda module, x: module(x), options=image, **shared)
    return text.tower(
        graph,
        params,
        lambda module, ids, mask: module(ids, mask),
        options=text_options,
        window=shape.max_position_embeddings,
        **shared,
    )
