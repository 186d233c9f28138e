"""CLIP (Radford et al. 2021): a ViT and a causal text transformer.

Images and texts share one embedding space. Vectors equal those of transformers' get_image_features
and get_text_features: not of unit length.
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
from mmjax.encoders.inputs.pixels import ImageOptions
from mmjax.encoders.inputs.text import TextOptions
from mmjax.encoders.layers import Block, Embedding, layer_norm
from mmjax.encoders.outputs import Outputs
from mmjax.encoders.towers.vit import Tokens, read_fields

MODEL_TYPES = ("clip", "clip_vision_model", "clip_text_model")  # of config.json

MODALITIES = ("image", "text")


@dataclass(frozen=True)
class VisionConfig:
    """Shape of the image encoder, by the names of config.json.

    Fields that config.json omits take transformers' defaults.
    """

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
    """Shape of the text encoder, by the names of config.json.

    Fields that config.json omits take transformers' defaults.
    """

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
    """Return the "vision" or "text" section of a config.json.

    A config.json of that half only is returned as it is. An old `vision_config_dict` replaces all
    of `vision_config`, as in transformers.
    """
    if config["model_type"].endswith(f"_{half}_model"):
        return config
    section = config.get(f"{half}_config_dict")
    section = (config.get(f"{half}_config") or {}) if section is None else section
    return {**section, "projection_dim": config.get("projection_dim")}


class Vision(nnx.Module):
    """CLIP's image encoder: a ViT with a LayerNorm before its blocks.

    `projection` adds image_embeds.
    """

    def __init__(self, config: VisionConfig, *, projection: bool = True, rngs: nnx.Rngs):
        width = config.hidden_size
        self.tokens = Tokens(width, config.image_size, config.patch_size, bias=False, rngs=rngs)
        self.input_norm = layer_norm(width, config.layer_norm_eps, rngs=rngs)
        self.blocks = blocks(config, rngs=rngs)
        self.norm = layer_norm(width, config.layer_norm_eps, rngs=rngs)
        projection_layer = nnx.Linear(width, config.projection_dim, use_bias=False, rngs=rngs)
        self.projection = projection_layer if projection else None

    def __call__(self, pixels: jax.Array) -> Outputs:
        """Return the hidden states and pooled outputs of a batch of images.

        Args:
          pixels: [B, H, W, 3].

        Returns:
          hidden_states.0 (the normalised embeddings) to hidden_states.N and last_hidden_state
          [B, L, D], pooler_output (the class token, normalised) [B, D] and, with the projection,
          image_embeds [B, F].
        """
        hidden = [self.input_norm(self.tokens(pixels))]
        for block in self.blocks:
            hidden.append(block(hidden[-1]))
        pooled = self.norm(hidden[-1][:, 0])
        results = {
            **outputs.states(hidden),
            "last_hidden_state": hidden[-1],
            "pooler_output": pooled,
        }
        if self.projection is not None:
            results["image_embeds"] = self.projection(pooled)
        return results


class Text(nnx.Module):
    """CLIP's text encoder: causal attention, pooled at the end-of-text token.

    `projection` adds text_embeds.
    """

    def __init__(self, config: TextConfig, *, projection: bool = True, rngs: nnx.Rngs):
        width = config.hidden_size
        self.end = config.eos_token_id
        self.words = Embedding(config.vocab_size, width, rngs=rngs)
        self.positions = Embedding(config.max_position_embeddings, width, rngs=rngs)
        self.blocks = blocks(config, rngs=rngs)
        self.norm = layer_norm(width, config.layer_norm_eps, rngs=rngs)
        projection_layer = nnx.Linear(width, config.projection_dim, use_bias=False, rngs=rngs)
        self.projection = projection_layer if projection else None

    def __call__(self, ids: jax.Array, mask: jax.Array) -> Outputs:
        """Return the hidden states and pooled outputs of a batch of texts.

        Args:
          ids: int [B, L].
          mask: bool [B, L], true at tokens.

        Returns:
          hidden_states.0 (the embeddings) to hidden_states.N, last_hidden_state (normalised)
          [B, L, D], pooler_output (at the end of text) [B, D] and, with the projection, text_embeds
          [B, F].
        """
        length = ids.shape[1]
        hidden = [self.words(ids) + self.positions(jnp.arange(length))[None]]
        causal = jnp.tril(jnp.ones((length, length), bool))[None]
        attention_mask = causal & mask.astype(bool)[:, None, :]  # [B, L, L]
        for block in self.blocks:
            hidden.append(block(hidden[-1], attention_mask))
        last = self.norm(hidden[-1])
        # Some configurations wrongly have 2; then take the largest id, which is the end of text's.
        end = (ids if self.end == 2 else ids == self.end).argmax(axis=1)
        pooled = jnp.take_along_axis(last, end[:, None, None], axis=1)[:, 0]
        results = {**outputs.states(hidden), "last_hidden_state": last, "pooler_output": pooled}
        if self.projection is not None:
            results["text_embeds"] = self.projection(pooled)
        return results


def blocks(config: Any, *, rngs: nnx.Rngs) -> nnx.List:
    """Build the pre-norm blocks that a configuration describes."""
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
    """Return rules for CLIP's and SigLIP's transformer layers.

    `source` is the part of the names before `layers`.
    """
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
    """Return rules for the names of CLIPVisionModel after `prefix`.

    They fill a `Vision` without its projection.
    """
    return [
        Rule(prefix + r"embeddings\.position_ids", None),  # buffer 0, 1, 2, …
        Rule(prefix + r"embeddings\.class_embedding", "tokens.class_token"),
        Rule(prefix + r"embeddings\.position_embedding\.weight", "tokens.positions"),
        *hub.patches(prefix + r"embeddings\.patch_embedding", "tokens.patches"),
        *hub.layer_norm(prefix + "pre_layrnorm", "input_norm"),
        *block_rules(prefix + r"encoder\."),
        *hub.layer_norm(prefix + "post_layernorm", "norm"),
    ]


def text_rules(prefix: str) -> list[Rule]:
    """Return rules for CLIPTextModel and SiglipTextModel after `prefix`.

    Projection and head are not included.
    """
    return [
        Rule(prefix + r"embeddings\.position_ids", None),
        *hub.embedding(prefix + r"embeddings\.token_embedding", "words"),
        *hub.embedding(prefix + r"embeddings\.position_embedding", "positions"),
        *block_rules(prefix + r"encoder\."),
        *hub.layer_norm(prefix + "final_layer_norm", "norm"),
    ]


def key_map(modality: str) -> list[Rule]:
    """Return the key map of CLIPModel and its separate halves.

    The other half's names are ignored.
    """
    vision_half = [
        *vision_rules(r"(?:vision_model\.)?"),
        *hub.linear("visual_projection", "projection"),
    ]
    text_half = [*text_rules(r"(?:text_model\.)?"), *hub.linear("text_projection", "projection")]
    ignored = (
        "text_(?:model|projection)" if modality == "image" else "vis(?:ion_model|ual_projection)"
    )
    return [
        Rule(rf"{ignored}\..*", None),
        Rule("logit_scale", None),
        Rule(r"classifier\..*", None),
        *(vision_half if modality == "image" else text_half),
    ]


def open_half(
    weights: str, revision: str | None, modality: str, kind: str
) -> tuple[Checkpoint, dict[str, Any]]:
    """Open a dual encoder's checkpoint and its half of config.json.

    Args:
      kind: the dual encoder's model_type.

    Raises:
      InputError: the modality or checkpoint does not exist, or the checkpoint is of another
        architecture.
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
    """Build the image or text tower of a CLIP checkpoint.

    Args:
      weights: folder or hub id.
      modality: "image" or "text"; the other half is not read.
      layers: outputs by name or number; image_embeds or text_embeds unless given, or pooler_output
        where the checkpoint has no projection.
      dtype: of parameters and computation, float32 or bfloat16.

    Raises:
      InputError: the checkpoint is missing, damaged or of another architecture, or a layer is
        unknown.
    """
    checkpoint, half = open_half(weights, revision, modality, "clip")
    name = "visual" if modality == "image" else "text"
    projection = hub.has(checkpoint.weights, rf"{name}_projection\.weight")
    kind: Any = Vision if modality == "image" else Text
    shape: Any = read_fields(VisionConfig if modality == "image" else TextConfig, half)
    graph, params = hub.load_module(
        lambda: kind(shape, projection=projection, rngs=nnx.Rngs(0)),
        checkpoint.weights,
        key_map(modality),
        jnp.dtype(dtype),
    )
    shared: dict[str, Any] = {
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
