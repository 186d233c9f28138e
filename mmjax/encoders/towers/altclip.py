"""AltCLIP (Chen et al. 2022): CLIP's image encoder with XLM-RoBERTa for text.

XLM-RoBERTa was trained to share CLIP's embedding space. Vectors equal those of transformers'
get_image_features and get_text_features: not of unit length.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.encoders.checkpoints import hub
from mmjax.encoders.checkpoints.hub import Rule
from mmjax.encoders.core import Tower
from mmjax.encoders.inputs import images, text
from mmjax.encoders.inputs.pixels import ImageOptions
from mmjax.encoders.inputs.text import TextOptions
from mmjax.encoders.layers import layer_norm
from mmjax.encoders.outputs import Outputs
from mmjax.encoders.towers import bert
from mmjax.encoders.towers.clip import Vision, VisionConfig, open_half, vision_rules
from mmjax.encoders.towers.roberta import padding_of
from mmjax.encoders.towers.vit import read_fields

MODEL_TYPES = ("altclip", "altclip_vision_model", "altclip_text_model")  # of config.json

# transformers' defaults for text fields that config.json omits.
TEXT_DEFAULTS = {
    "vocab_size": 250002,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "hidden_act": "gelu",
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}


class Text(nnx.Module):
    """AltCLIP's text encoder: XLM-RoBERTa, a LayerNorm and a linear layer.

    The linear layer maps to the teacher's width, `teacher`. `projection` is the width of
    text_embeds; None computes no text_embeds.
    """

    def __init__(
        self,
        config: bert.Config,
        *,
        padding: int,
        teacher: int,
        projection: int | None,
        rngs: nnx.Rngs,
    ):
        width = config.hidden_size
        self.roberta = bert.Bert(config, pooler=False, padding=padding, rngs=rngs)
        self.norm = layer_norm(width, config.layer_norm_eps, rngs=rngs)
        self.transformation = nnx.Linear(width, teacher, rngs=rngs)
        self.projection = (
            nnx.Linear(teacher, projection, use_bias=False, rngs=rngs) if projection else None
        )

    def __call__(self, ids: jax.Array, mask: jax.Array) -> Outputs:
        """Return the hidden states and pooled outputs of a batch of texts.

        Args:
          ids: int [B, L].
          mask: bool [B, L], true at tokens.

        Returns:
          XLM-RoBERTa's hidden_states.0 (the embeddings) to hidden_states.N [B, L, D],
          last_hidden_state (after the linear layer) [B, L, T], pooler_output (its first token)
          [B, T] and, with the projection, text_embeds [B, F]. T is the teacher's width.
        """
        results = self.roberta(ids, mask)
        last = self.transformation(self.norm(results["last_hidden_state"]))
        results |= {"last_hidden_state": last, "pooler_output": last[:, 0]}
        if self.projection is not None:
            results["text_embeds"] = self.projection(last[:, 0])
        return results


def key_map(modality: str) -> list[Rule]:
    """Return the key map of AltCLIPModel and its separate halves.

    The other half's names are ignored. In both halves, versions of transformers write either
    `encoder.layer` or `encoder.layers`.
    """
    if modality == "image":
        rules = [
            Rule(r"text_(?:model|projection)\..*", None),
            *vision_rules(r"(?:vision_model\.)?"),
            *hub.linear("visual_projection", "projection"),
        ]
    else:
        text_rules = bert.key_map(r"(?:text_model\.)?roberta", pooler=False)
        rules = [
            Rule(r"vis(?:ion_model|ual_projection)\..*", None),
            *hub.layer_norm(r"(?:text_model\.)?pre_LN", "norm"),
            *hub.linear(r"(?:text_model\.)?transformation", "transformation"),
            *hub.linear("text_projection", "projection"),
            *(rule._replace(path=rule.path and f"roberta.{rule.path}") for rule in text_rules),
        ]
    either = r"encoder\.layers?\."
    patterns = (
        rule.pattern.replace(r"encoder\.layers\.", either).replace(r"encoder\.layer\.", either)
        for rule in rules
    )
    rules = [rule._replace(pattern=pattern) for rule, pattern in zip(rules, patterns, strict=True)]
    return [Rule("logit_scale", None), *rules]


def load(
    *,
    weights: str = "BAAI/AltCLIP",
    revision: str | None = None,
    modality: str = "image",
    layers: Sequence[str | int] = (),
    dtype: str = "float32",
    image: ImageOptions = ImageOptions(),
    text_options: TextOptions = TextOptions(),
) -> Tower:
    """Build the image or text tower of an AltCLIP checkpoint.

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
    checkpoint, half = open_half(weights, revision, modality, "altclip")
    name = "visual" if modality == "image" else "text"
    projected = hub.has(checkpoint.weights, rf"{name}_projection\.weight")
    shared: dict[str, Any] = {
        "folder": checkpoint.folder,
        "layers": layers,
        "default": f"{modality}_embeds" if projected else "pooler_output",
        "about": {
            "encoder": f"altclip:{checkpoint.name}",
            "revision": checkpoint.revision,
            "half": modality,
        },
    }
    if modality == "image":
        shape = read_fields(VisionConfig, half)
        graph, params = hub.load_module(
            lambda: Vision(shape, projection=projected, rngs=nnx.Rngs(0)),
            checkpoint.weights,
            key_map(modality),
            jnp.dtype(dtype),
        )
        return images.tower(graph, params, lambda module, x: module(x), options=image, **shared)
    config, padding = bert.Config.read(TEXT_DEFAULTS | half), padding_of(half)
    projection = (half.get("projection_dim") or 768) if projected else None
    teacher = half.get("project_dim", 768)
    graph, params = hub.load_module(
        lambda: Text(
            config, padding=padding, teacher=teacher, projection=projection, rngs=nnx.Rngs(0)
        ),
        checkpoint.weights,
        key_map(modality),
        jnp.dtype(dtype),
    )
    return text.tower(
        graph,
        params,
        lambda module, ids, mask: module(ids, mask),
        options=text_options,
        window=config.max_position_embeddings - padding - 1,
        **shared,
    )
