"""BLIP-2's first stage (Li et al. 2023): a ViT and a Q-Former.

32 learned queries pass through BERT's blocks. They attend to a text's tokens, if there is one, and
cross-attend to the image in every other block. Projected, queries and text share one embedding
space (image-text contrast). The queries' states beside a text classify whether it belongs to the
image (image-text matching).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.core.errors import InputError
from mmjax.encoders import outputs
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.checkpoints.hub import Rule
from mmjax.encoders.core import Tower
from mmjax.encoders.inputs import images, pairs, text
from mmjax.encoders.inputs.pixels import ImageOptions
from mmjax.encoders.inputs.text import TextOptions
from mmjax.encoders.outputs import Outputs
from mmjax.encoders.towers import qformer, vit
from mmjax.encoders.towers.qformer import Config, Qformer, Words

MODEL_TYPES = ("blip-2",)  # of config.json

MODALITIES = ("image", "text", "image_text")


@dataclass(frozen=True)
class VisionConfig(vit.Config):
    """Shape of the ViT, by the names of config.json.

    Fields that config.json omits take transformers' defaults.
    """

    hidden_size: int = 1408
    num_hidden_layers: int = 39
    num_attention_heads: int = 16
    intermediate_size: int = 6144
    layer_norm_eps: float = 1e-6
    patch_size: int = 14


class Blip2(nnx.Module):
    """BLIP-2 with only the parts that one modality needs.

    `modality` is "image", "text" or "image_text" (pairs of both).
    """

    def __init__(self, config: Config, vision: VisionConfig, modality: str, *, rngs: nnx.Rngs):
        width, count = config.hidden_size, config.num_query_tokens
        init = nnx.initializers.normal(0.02)
        has_image = "image" in modality
        self.vision = vit.Vit(vision, pooler=False, rngs=rngs) if has_image else None
        self.queries = (
            nnx.Param(init(rngs.params(), (count, width), jnp.float32)) if has_image else None
        )
        self.embeddings = Words(config, rngs=rngs) if "text" in modality else None
        self.qformer = Qformer(config, vision.hidden_size, modality, rngs=rngs)
        out = 2 if modality == "image_text" else config.image_text_hidden_size
        self.head = nnx.Linear(width, out, rngs=rngs)

    def asked(self, batch: int) -> jax.Array:
        """Return the queries repeated over a batch, [B, Q, D]."""
        assert self.queries is not None
        queries = self.queries[...]
        return jnp.broadcast_to(queries[None], (batch, *queries.shape))


def embed_images(module: Blip2, pixels: jax.Array) -> Outputs:
    """Return the outputs of a Blip2 of "image" for a batch.

    Args:
      pixels: [B, H, W, 3].

    Returns:
      The ViT's hidden_states.0 (the embeddings) to hidden_states.N, its last_hidden_state
      (normalised) [B, N, V] and pooler_output (the class token, normalised twice) [B, V]; the
      Q-Former's qformer_hidden_states.0 … and qformer_states (the last) [B, Q, D]; and image_embeds
      [B, Q, F], each query's projection of unit length.
    """
    assert module.vision is not None
    results = module.vision(pixels)
    last = results["last_hidden_state"]
    results["pooler_output"] = module.vision.norm(last[:, 0])
    queries = module.asked(len(pixels))
    hidden = module.qformer(queries, queries=queries.shape[1], image=last)
    results |= {f"qformer_{name}": state for name, state in outputs.states(hidden).items()}
    results["qformer_states"] = hidden[-1]
    results["image_embeds"] = outputs.normalize_rows(module.head(hidden[-1]))
    return results


def embed_texts(module: Blip2, ids: jax.Array, mask: jax.Array) -> Outputs:
    """Return the outputs of a Blip2 of "text" for a batch.

    Args:
      ids: int [B, L].
      mask: bool [B, L], true at tokens.

    Returns:
      The Q-Former's hidden_states.0 (the embeddings) to hidden_states.N and last_hidden_state
      [B, L, D], pooler_output (its first token) [B, D] and text_embeds [B, F], of unit length.
    """
    assert module.embeddings is not None
    hidden = module.qformer(module.embeddings(ids), mask.astype(bool)[:, None, :])
    first = hidden[-1][:, 0]
    return {
        **outputs.states(hidden),
        "last_hidden_state": hidden[-1],
        "pooler_output": first,
        "text_embeds": outputs.normalize_rows(module.head(first)),
    }


def embed_pairs(
    module: Blip2, pixels: jax.Array, ids: jax.Array, mask: jax.Array
) -> tuple[Outputs, jax.Array]:
    """Return the outputs of a Blip2 of "image_text" for a batch.

    Args:
      pixels: [B, H, W, 3].
      ids: int [B, L].
      mask: bool [B, L], true at tokens.

    Returns:
      The outputs: the Q-Former's hidden_states.0 (the embeddings) to hidden_states.N and
      last_hidden_state [B, Q + L, D], queries first; multimodal_embeds (the queries' last states)
      [B, Q, D]; itm_logits [B, 2], for "does not belong" and "belongs". And the mask [B, Q + L].
    """
    assert module.vision is not None
    assert module.embeddings is not None
    image = module.vision(pixels)["last_hidden_state"]
    queries = module.asked(len(pixels))
    count = queries.shape[1]
    embedded = jnp.concatenate([queries, module.embeddings(ids)], axis=1)
    full_mask = jnp.pad(mask.astype(bool), ((0, 0), (count, 0)), constant_values=True)
    hidden = module.qformer(embedded, full_mask[:, None, :], count, image)
    matched = hidden[-1][:, :count]
    results = {
        **outputs.states(hidden),
        "last_hidden_state": hidden[-1],
        "multimodal_embeds": matched,
        "itm_logits": module.head(matched).mean(axis=1),
    }
    return results, full_mask


def vision_rules() -> list[Rule]:
    """Return rules for the names of Blip2VisionModel."""
    layer, block = r"vision_model\.encoder\.layers\.(\d+)\.", r"vision.blocks.\1."
    qkv = [block + f"attention.{part}" for part in ("query", "key", "value")]
    return [
        Rule(r"vision_model\.embeddings\.class_embedding", "vision.tokens.class_token", np.ravel),
        Rule(
            r"vision_model\.embeddings\.position_embedding",
            "vision.tokens.positions",
            lambda array: array[0],
        ),
        *hub.patches(r"vision_model\.embeddings\.patch_embedding", "vision.tokens.patches"),
        *hub.layer_norm(layer + "layer_norm1", block + "attention_norm"),
        *hub.fused(layer + r"self_attn\.qkv", qkv),
        *hub.linear(layer + r"self_attn\.projection", block + "attention.out"),
        *hub.layer_norm(layer + "layer_norm2", block + "mlp_norm"),
        *hub.linear(layer + r"mlp\.fc1", block + "mlp.up"),
        *hub.linear(layer + r"mlp\.fc2", block + "mlp.down"),
        *hub.layer_norm(r"vision_model\.post_layernorm", "vision.norm"),
    ]


def key_map(modality: str) -> list[Rule]:
    """Return the key map of Blip2ForImageTextRetrieval.

    Names that the modality does not need are ignored.
    """
    heads = {"image": "vision_projection", "text": "text_projection", "image_text": "itm_head"}
    unused = [rf"{name}\..*" for name in heads.values() if name != heads[modality]]
    if "image" not in modality:
        unused += [r"vision_model\..*", "query_tokens"]
    return [
        *(Rule(pattern, None) for pattern in unused),
        *vision_rules(),
        Rule("query_tokens", "queries", lambda array: array[0]),
        *qformer.unused(modality),
        *qformer.key_map(),
        *hub.linear(heads[modality], "head"),
    ]


def load(
    *,
    weights: str = "Salesforce/blip2-itm-vit-g",
    revision: str | None = None,
    modality: str = "image",
    layers: Sequence[str | int] = (),
    dtype: str = "float32",
    image: ImageOptions = ImageOptions(),
    text_options: TextOptions = TextOptions(),
) -> Tower:
    """Build the tower of a BLIP-2 checkpoint for one modality.

    Args:
      weights: folder or hub id.
      modality: "image", "text" or "image_text" (pairs); what it does not need is not read.
      layers: outputs by name or number; unless given, image_embeds:mean, text_embeds or
        multimodal_embeds:mean.
      dtype: of parameters and computation, float32 or bfloat16.

    Raises:
      InputError: the checkpoint is missing, damaged, of another architecture or made for
        generation, or a modality or layer is unknown.
    """
    if modality not in MODALITIES:
        raise InputError(f"modality {modality!r} is none of {', '.join(MODALITIES)}")
    checkpoint = hub.find(weights, revision)
    config_json = hub.read_config(checkpoint.folder, MODEL_TYPES)
    if not hub.has(checkpoint.weights, r"itm_head\.weight"):
        raise InputError(
            f"{checkpoint.name} is a BLIP-2 that generates; its features are those of one for "
            "retrieval, such as Salesforce/blip2-itm-vit-g"
        )
    vision = VisionConfig.read(config_json.get("vision_config") or {})
    config = vit.read_fields(Config, {**config_json, **(config_json.get("qformer_config") or {})})
    graph, params = hub.load_module(
        lambda: Blip2(config, vision, modality, rngs=nnx.Rngs(0)),
        checkpoint.weights,
        key_map(modality),
        jnp.dtype(dtype),
    )
    shared: dict[str, Any] = {
        "folder": checkpoint.folder,
        "layers": layers,
        "about": {
            "encoder": f"blip2:{checkpoint.name}",
            "revision": checkpoint.revision,
            "half": modality,
        },
    }
    if modality == "image":
        return images.tower(
            graph, params, embed_images, options=image, default="image_embeds", **shared
        )
    shared["window"] = config.max_position_embeddings
    if modality == "text":
        return text.tower(
            graph, params, embed_texts, options=text_options, default="text_embeds", **shared
        )
    return pairs.tower(
        graph,
        params,
        embed_pairs,
        image=image,
        text_options=text_options,
        default="multimodal_embeds",
        **shared,
    )
