"""SigLIP (Zhai et al. 2023) and SigLIP 2 of a fixed resolution.

SigLIP 2 is by Tschannen et al. 2025. An image is pooled by the attention of one learned query. A
text is padded to its full length, attends to its padding and is pooled at its last position.
Vectors equal those of transformers' get_image_features and get_text_features: not of unit length.
"""

import json
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.encoders import outputs
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.checkpoints.hub import Rule
from mmjax.encoders.core import Batch, Tower
from mmjax.encoders.inputs import images, text
from mmjax.encoders.inputs.cleaning import clean
from mmjax.encoders.inputs.pixels import ImageOptions
from mmjax.encoders.inputs.text import TextOptions
from mmjax.encoders.layers import Embedding, Mlp, attend, layer_norm
from mmjax.encoders.outputs import Outputs
from mmjax.encoders.towers import clip
from mmjax.encoders.towers.vit import Tokens, read_fields

MODEL_TYPES = ("siglip", "siglip_vision_model", "siglip_text_model")  # of config.json

PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class VisionConfig:
    """Shape of the image encoder, by the names of config.json.

    Fields that config.json omits take transformers' defaults.
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    image_size: int = 224
    patch_size: int = 16
    vision_use_head: bool = True


@dataclass(frozen=True)
class TextConfig:
    """Shape of the text encoder, by the names of config.json.

    Fields that config.json omits take transformers' defaults.
    """

    vocab_size: int = 32000
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    max_position_embeddings: int = 64
    projection_size: int | None = None  # hidden_size unless given


class Pooler(nnx.Module):
    """Attention pooling by one learned query, then a residual MLP."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.probe = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (width,), jnp.float32))
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)  # one matrix, as in torch
        self.out = nnx.Linear(width, width, rngs=rngs)
        self.norm = layer_norm(width, config.layer_norm_eps, rngs=rngs)
        self.mlp = Mlp(width, config.intermediate_size, config.hidden_act, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Pool tokens x [B, L, D] to [B, D].

        Args:
          mask: bool [B, L], true at tokens.
        """
        batch, length, width = x.shape
        query = self.qkv(self.probe[...][None])[:, :width]  # [1, D]
        query = jnp.broadcast_to(query[None], (batch, 1, width)).reshape(batch, 1, self.heads, -1)
        _, key, value = (
            part.reshape(batch, length, self.heads, -1)
            for part in jnp.split(self.qkv(x), 3, axis=-1)
        )
        attention_mask = None if mask is None else mask[:, None, :]
        pooled = self.out(attend(query, key, value, attention_mask).reshape(batch, width))
        return pooled + self.mlp(self.norm(pooled))


class Trunk(nnx.Module):
    """Transformer from embedded patches to the image's vector."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        self.blocks = clip.blocks(config, rngs=rngs)
        self.norm = layer_norm(config.hidden_size, config.layer_norm_eps, rngs=rngs)
        self.pooler = Pooler(config, rngs=rngs) if config.vision_use_head else None

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> Outputs:
        """Return the hidden states and pooled output of embedded patches.

        Args:
          x: [B, L, D].
          mask: bool [B, L], true at patches.
        """
        hidden = [x]
        for block in self.blocks:
            hidden.append(block(hidden[-1], None if mask is None else mask[:, None, :]))
        last = self.norm(hidden[-1])
        results = {**outputs.states(hidden), "last_hidden_state": last}
        if self.pooler is not None:
            results["pooler_output"] = results["image_embeds"] = self.pooler(last, mask)
        return results


class Vision(nnx.Module):
    """SigLIP's image encoder."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        self.tokens = Tokens(
            config.hidden_size, config.image_size, config.patch_size, class_token=False, rngs=rngs
        )
        self.trunk = Trunk(config, rngs=rngs)

    def __call__(self, pixels: jax.Array) -> Outputs:
        """Return the hidden states and pooled output of a batch of images.

        Args:
          pixels: [B, H, W, 3].

        Returns:
          hidden_states.0 (the embeddings) to hidden_states.N, last_hidden_state (normalised)
          [B, L, D] and, with the head, pooler_output [B, D], also as image_embeds.
        """
        return self.trunk(self.tokens(pixels))


class Text(nnx.Module):
    """SigLIP's text encoder: neither a causal nor a padding mask."""

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.words = Embedding(config.vocab_size, width, rngs=rngs)
        self.positions = Embedding(config.max_position_embeddings, width, rngs=rngs)
        self.blocks = clip.blocks(config, rngs=rngs)
        self.norm = layer_norm(width, config.layer_norm_eps, rngs=rngs)
        self.head = nnx.Linear(width, config.projection_size or width, rngs=rngs)

    def __call__(self, ids: jax.Array) -> Outputs:
        """Return the hidden states and pooled output of a batch of texts.

        Args:
          ids: int [B, L], padded to the length the model was trained on.

        Returns:
          hidden_states.0 (the embeddings) to hidden_states.N, last_hidden_state (normalised)
          [B, L, D] and pooler_output [B, F], also as text_embeds.
        """
        hidden = [self.words(ids) + self.positions(jnp.arange(ids.shape[1]))[None]]
        for block in self.blocks:
            hidden.append(block(hidden[-1]))
        last = self.norm(hidden[-1])
        pooled = self.head(last[:, -1])
        return {
            **outputs.states(hidden),
            "last_hidden_state": last,
            "pooler_output": pooled,
            "text_embeds": pooled,
        }


def vision_rules(prefix: str) -> list[Rule]:
    """Return rules for the names of SiglipVisionModel after `prefix`.

    The patch embedding is not included.
    """
    return [
        Rule(prefix + r"embeddings\.position_ids", None),
        Rule(prefix + r"embeddings\.position_embedding\.weight", "tokens.positions"),
        *clip.block_rules(prefix + r"encoder\.", "trunk.blocks"),
        *hub.layer_norm(prefix + "post_layernorm", "trunk.norm"),
        Rule(prefix + r"head\.probe", "trunk.pooler.probe", np.ravel),
        Rule(prefix + r"head\.attention\.in_proj_weight", "trunk.pooler.qkv.kernel", hub.transpose),
        Rule(prefix + r"head\.attention\.in_proj_bias", "trunk.pooler.qkv.bias"),
        *hub.linear(prefix + r"head\.attention\.out_proj", "trunk.pooler.out"),
        *hub.layer_norm(prefix + r"head\.layernorm", "trunk.pooler.norm"),
        *hub.linear(prefix + r"head\.mlp\.fc1", "trunk.pooler.mlp.up"),
        *hub.linear(prefix + r"head\.mlp\.fc2", "trunk.pooler.mlp.down"),
    ]


def key_map(modality: str) -> list[Rule]:
    """Return the key map of SiglipModel and its separate halves.

    The other half's names are ignored.
    """
    rules = [Rule(r"logit_(?:scale|bias)", None), Rule(r"classifier\..*", None)]
    if modality == "image":
        prefix = r"(?:vision_model\.)?"
        patches = hub.patches(prefix + r"embeddings\.patch_embedding", "tokens.patches")
        return [*rules, Rule(r"text_model\..*", None), *patches, *vision_rules(prefix)]
    prefix = r"(?:text_model\.)?"
    head = hub.linear(prefix + "head", "head")
    return [*rules, Rule(r"vision_model\..*", None), *clip.text_rules(prefix), *head]


def load(
    *,
    weights: str = "google/siglip-base-patch16-224",
    revision: str | None = None,
    modality: str = "image",
    layers: Sequence[str | int] = (),
    dtype: str = "float32",
    image: ImageOptions = ImageOptions(),
    text_options: TextOptions = TextOptions(),
) -> Tower:
    """Build the image or text tower of a SigLIP checkpoint.

    Args:
      weights: folder or hub id.
      modality: "image" or "text"; the other half is not read.
      layers: outputs by name or number; image_embeds or text_embeds unless given, or
        last_hidden_state:mean where the image encoder has no head.
      dtype: of parameters and computation, float32 or bfloat16.
      text_options: texts are always padded to max_length, whatever its `padding`.

    Raises:
      InputError: the checkpoint is missing, damaged or of another architecture, or a layer is
        unknown.
    """
    if modality == "text":
        return load_text("siglip", weights, revision, layers, dtype, text_options)
    checkpoint, half = clip.open_half(weights, revision, modality, "siglip")
    config = read_fields(VisionConfig, half)
    graph, params = hub.load_module(
        lambda: Vision(config, rngs=nnx.Rngs(0)),
        checkpoint.weights,
        key_map(modality),
        jnp.dtype(dtype),
    )
    return images.tower(
        graph,
        params,
        lambda module, pixels: module(pixels),
        folder=checkpoint.folder,
        options=image,
        layers=layers,
        default="image_embeds" if config.vision_use_head else "last_hidden_state:mean",
        about={
            "encoder": f"siglip:{checkpoint.name}",
            "revision": checkpoint.revision,
            "half": modality,
        },
    )


def load_text(
    kind: str,
    weights: str,
    revision: str | None,
    layers: Sequence[str | int],
    dtype: str,
    options: TextOptions,
) -> Tower:
    """Build the text tower of a SigLIP or SigLIP 2 checkpoint.

    Args:
      kind: "siglip" or "siglip2", whose text encoders are alike.

    Raises:
      InputError: what `load` raises.
    """
    checkpoint, half = clip.open_half(weights, revision, "text", kind)
    config = read_fields(TextConfig, half)
    graph, params = hub.load_module(
        lambda: Text(config, rngs=nnx.Rngs(0)),
        checkpoint.weights,
        key_map("text"),
        jnp.dtype(dtype),
    )
    tower = text.tower(
        graph,
        params,
        lambda module, ids, mask: module(ids),
        folder=checkpoint.folder,
        options=replace(options, padding="max_length"),
        window=config.max_position_embeddings,
        layers=layers,
        default="text_embeds",
        about={
            "encoder": f"{kind}:{checkpoint.name}",
            "revision": checkpoint.revision,
            "half": "text",
        },
    )
    tokenizer = options.tokenizer
    normalize = canonical(hub.settings(tokenizer) if tokenizer else checkpoint.folder)

    def batches(texts: Sequence[str], size: int) -> Iterator[Batch]:
        # Clean before punctuation is dropped; the tower's own cleaning then changes nothing.
        texts = [clean(line) for line in texts] if options.clean else texts
        return tower.batches([normalize(line) for line in texts], size)

    return replace(tower, batches=batches)


def canonical(folder: Path) -> Callable[[str], str]:
    """Return the function that normalises texts before the tokenizer.

    As in training: lower case; with SigLIP's own tokenizer also without punctuation and runs of
    blanks, which not every tokenizer.json does. SigLIP 2 has Gemma's, which keeps them.
    """
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) if path.exists() else {}
    if "SiglipTokenizer" in settings.get("tokenizer_class", ""):
        return lambda line: " ".join(line.lower().translate(PUNCTUATION).split())
    return str.lower
