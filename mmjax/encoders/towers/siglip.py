"""SigLIP (Zhai et al. 2023) and SigLIP 2 (Tschannen et al. 2025) of a fixed resolution.

An image is pooled by the attention of one learned query; a text is padded to its full length, sees
its padding and is read at its last place. Vectors are what transformers' get_image_features and
get_text_features give: not of unit length.
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
from mmjax.encoders.inputs.pixels import Options as ImageOptions
from mmjax.encoders.inputs.text import Options as TextOptions
from mmjax.encoders.layers import Embedding, Mlp, attend, layer_norm
from mmjax.encoders.outputs import Outputs
from mmjax.encoders.towers import clip
from mmjax.encoders.towers.vit import Tokens, read_fields

MODEL_TYPES = ("siglip", "siglip_vision_model", "siglip_text_model")  # of config.json

PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class VisionConfig:
    """What config.json says of the image half, by its own names; omissions are transformers'."""

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
    """What config.json says of the text half, by its own names; omissions are transformers'."""

    vocab_size: int = 32000
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    max_position_embeddings: int = 64
    projection_size: int | None = None  # the width unless given


class Pooler(nnx.Module):
    """One learned query's attention over all tokens, then an MLP with a residual."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.probe = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (width,), jnp.float32))
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)  # one matrix, as torch keeps it
        self.out = nnx.Linear(width, width, rngs=rngs)
        self.norm = layer_norm(width, config.layer_norm_eps, rngs=rngs)
        self.mlp = Mlp(width, config.intermediate_size, config.hidden_act, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """x: [B, L, D]; mask: bool [B, L], true at tokens; to [B, D]."""
        batch, length, width = x.shape
        query = self.qkv(self.probe[...][None])[:, :width]  # [1, D]
        query = jnp.broadcast_to(query[None], (batch, 1, width)).reshape(batch, 1, self.heads, -1)
        _, key, value = (
            part.reshape(batch, length, self.heads, -1)
            for part in jnp.split(self.qkv(x), 3, axis=-1)
        )
        seen = None if mask is None else mask[:, None, :]
        pooled = self.out(attend(query, key, value, seen).reshape(batch, width))
        return pooled + self.mlp(self.norm(pooled))


class Trunk(nnx.Module):
    """From embedded patches to the image's vector."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        self.blocks = clip.blocks(config, rngs=rngs)
        self.norm = layer_norm(config.hidden_size, config.layer_norm_eps, rngs=rngs)
        self.pooler = Pooler(config, rngs=rngs) if config.vision_use_head else None

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> Outputs:
        """x: [B, L, D]; mask: bool [B, L], true at patches."""
        hidden = [x]
        for block in self.blocks:
            hidden.append(block(hidden[-1], None if mask is None else mask[:, None, :]))
        last = self.norm(hidden[-1])
        found = {**outputs.states(hidden), "last_hidden_state": last}
        if self.pooler is not None:
            found["pooler_output"] = found["image_embeds"] = self.pooler(last, mask)
        return found


class Vision(nnx.Module):
    """SigLIP's image half."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        self.tokens = Tokens(
            config.hidden_size, config.image_size, config.patch_size, class_token=False, rngs=rngs
        )
        self.trunk = Trunk(config, rngs=rngs)

    def __call__(self, pixels: jax.Array) -> Outputs:
        """pixels: [B, H, W, 3].

        Gives hidden_states.0 (the embeddings) to hidden_states.N, last_hidden_state (normalised)
        [B, L, D] and, with the head, pooler_output [B, D], also as image_embeds.
        """
        return self.trunk(self.tokens(pixels))


class Text(nnx.Module):
    """SigLIP's text half: no mask, neither causal nor for padding."""

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.words = Embedding(config.vocab_size, width, rngs=rngs)
        self.positions = Embedding(config.max_position_embeddings, width, rngs=rngs)
        self.blocks = clip.blocks(config, rngs=rngs)
        self.norm = layer_norm(width, config.layer_norm_eps, rngs=rngs)
        self.head = nnx.Linear(width, config.projection_size or width, rngs=rngs)

    def __call__(self, ids: jax.Array) -> Outputs:
        """ids: int [B, L], padded to the length the model was trained on.

        Gives hidden_states.0 (the embeddings) to hidden_states.N, last_hidden_state (normalised)
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
    """Names of SiglipVisionModel after `prefix`, without its patch embedding."""
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
    """Names of SiglipModel and of its halves on their own; the other half's are ignored."""
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
    """The image or the text tower of a checkpoint: folder or hub id.

    Args:
      modality: "image" or "text"; the other half is not read.
      layers: outputs by name or number; image_embeds or text_embeds unless given, or
        last_hidden_state:mean where the image half has no head.
      dtype: of parameters and computation, float32 or bfloat16.
      text_options: texts are always padded to max_length, whatever its `padding`.

    Raises:
      InputError: no such checkpoint, of another architecture, or damaged; no such layer.
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
    """The text tower of `kind`, "siglip" or "siglip2", whose text halves are alike.

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
    made = text.tower(
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
    named = options.tokenizer
    spell = canonical(hub.settings(named) if named else checkpoint.folder)

    def batches(texts: Sequence[str], size: int) -> Iterator[Batch]:
        # Cleaning needs the punctuation; the tower's own finds nothing left to do.
        texts = [clean(line) for line in texts] if options.clean else texts
        return made.batches([spell(line) for line in texts], size)

    return replace(made, batches=batches)


def canonical(folder: Path) -> Callable[[str], str]:
    """What a text goes through before the tokenizer, as in training.

    Lower case; with SigLIP's own tokenizer also without punctuation and runs of blanks, which not
    every tokenizer.json says. SigLIP 2 has Gemma's, which keeps them.
    """
    path = folder / "tokenizer_config.json"
    about = json.loads(path.read_text()) if path.exists() else {}
    if "SiglipTokenizer" in about.get("tokenizer_class", ""):
        return lambda line: " ".join(line.lower().translate(PUNCTUATION).split())
    return str.lower
