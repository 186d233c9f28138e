"""ALIGN (Jia et al. 2021): EfficientNet and BERT with one embedding space.

The image encoder ends with EfficientNet's last block, without the convolution on top. The image's
vector is that block's mean over positions; the text's is a projection of its first token. Vectors
equal those of transformers' get_image_features and get_text_features: not of unit length.
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
from mmjax.encoders.outputs import Outputs
from mmjax.encoders.towers import bert, efficientnet
from mmjax.encoders.towers.clip import open_half
from mmjax.encoders.towers.efficientnet import EfficientNet

MODEL_TYPES = ("align", "align_vision_model", "align_text_model")  # of config.json

TEXT_DEFAULTS: dict[str, Any] = {  # transformers' defaults for what config.json omits
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}


class Text(nnx.Module):
    """ALIGN's text encoder: BERT and an optional linear projection.

    `projection` is the width of text_embeds; None computes no text_embeds.
    """

    def __init__(
        self, config: bert.Config, *, pooler: bool, projection: int | None, rngs: nnx.Rngs
    ):
        self.bert = bert.Bert(config, pooler=pooler, rngs=rngs)
        width = config.hidden_size
        self.projection = nnx.Linear(width, projection, rngs=rngs) if projection else None

    def __call__(self, ids: jax.Array, mask: jax.Array) -> Outputs:
        """Return BERT's outputs and, with the projection, text_embeds [B, F].

        Args:
          ids: int [B, L].
          mask: bool [B, L], true at tokens.
        """
        results = self.bert(ids, mask)
        if self.projection is not None:
            results["text_embeds"] = self.projection(results["last_hidden_state"][:, 0])
        return results


def embed_image(module: EfficientNet, pixels: jax.Array) -> Outputs:
    """Return EfficientNet's outputs, pooler_output also as image_embeds [B, F]."""
    results = module(pixels)
    return {**results, "image_embeds": results["pooler_output"]}


def key_map(modality: str, *, pooler: bool = True) -> list[Rule]:
    """Return the key map of AlignModel and its separate halves.

    The other half's names are ignored.
    """
    if modality == "image":
        ignored = Rule(r"(?:text_model|text_projection)\..*|temperature", None)
        return [ignored, *efficientnet.key_map("vision_model")]
    text_rules = bert.key_map("text_model", pooler=pooler)
    return [
        Rule(r"vision_model\..*|temperature", None),
        *hub.linear("text_projection", "projection"),
        *(rule._replace(path=rule.path and f"bert.{rule.path}") for rule in text_rules),
    ]


def load(
    *,
    weights: str = "kakaobrain/align-base",
    revision: str | None = None,
    modality: str = "image",
    layers: Sequence[str | int] = (),
    dtype: str = "float32",
    image: ImageOptions = ImageOptions(),
    text_options: TextOptions = TextOptions(),
) -> Tower:
    """Build the image or text tower of an ALIGN checkpoint.

    Args:
      weights: folder or hub id.
      modality: "image" or "text"; the other half is not read.
      layers: outputs by name or number; image_embeds or text_embeds unless given, or
        sentence_embedding where a text encoder has no projection: the mean of last_hidden_state,
        unless the checkpoint's sentence-transformers files name another pooling.
      dtype: of parameters and computation, float32 or bfloat16.

    Raises:
      InputError: the checkpoint is missing, damaged or of another architecture, or a layer is
        unknown.
    """
    checkpoint, half = open_half(weights, revision, modality, "align")
    shared: dict[str, Any] = {
        "folder": checkpoint.folder,
        "layers": layers,
        "about": {
            "encoder": f"align:{checkpoint.name}",
            "revision": checkpoint.revision,
            "half": modality,
        },
    }
    if modality == "image":
        shape = efficientnet.Config.read(half, top=False)
        graph, params = hub.load_module(
            lambda: EfficientNet(shape, rngs=nnx.Rngs(0)),
            checkpoint.weights,
            key_map(modality),
            jnp.dtype(dtype),
        )
        return images.tower(
            graph, params, embed_image, options=image, default="image_embeds", **shared
        )
    config = bert.Config.read(TEXT_DEFAULTS | half)
    pooler = hub.has(checkpoint.weights, r"(?:text_model\.)?pooler\.dense\.weight")
    projected = hub.has(checkpoint.weights, r"text_projection\.weight")
    projection = (half.get("projection_dim") or 640) if projected else None
    graph, params = hub.load_module(
        lambda: Text(config, pooler=pooler, projection=projection, rngs=nnx.Rngs(0)),
        checkpoint.weights,
        key_map(modality, pooler=pooler),
        jnp.dtype(dtype),
    )
    return text.tower(
        graph,
        params,
        lambda module, ids, mask: module(ids, mask),
        options=text_options,
        window=config.max_position_embeddings,
        default="text_embeds" if projected else None,
        **shared,
    )
