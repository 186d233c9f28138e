"""DistilBERT (Sanh et al. 2019): BERT with half of its blocks.

It has no segments and no pooler. A text's vector is pooled from the last hidden state as the
checkpoint's sentence-transformers files say.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx

from mmjax.core.errors import InputError
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.checkpoints.hub import Rule
from mmjax.encoders.core import Tower
from mmjax.encoders.inputs import text
from mmjax.encoders.towers.bert import Bert, Config

MODEL_TYPES = ("distilbert",)  # of config.json

# Names in DistilBERT's config.json -> BERT's.
NAMES = {
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
    "max_position_embeddings": "max_position_embeddings",
    "activation": "hidden_act",
}


def read_config(config: dict[str, Any]) -> Config:
    """Translate DistilBERT's config.json to BERT's `Config`.

    Raises:
      InputError: a key is missing, or config.json asks for a variant that this tower does not
        compute.
    """
    missing = [name for name in NAMES if name not in config]
    if missing:
        raise InputError(f"config.json lacks {', '.join(missing)}")
    shape = {ours: config[theirs] for theirs, ours in NAMES.items()}
    return Config.read({**shape, "type_vocab_size": 0, "layer_norm_eps": 1e-12})


def key_map() -> list[Rule]:
    """Return the key map of DistilBertModel.

    Names come with or without the prefix `distilbert.` that task models add.
    """
    prefix = r"(?:distilbert\.)?"
    layer = prefix + r"transformer\.layer\.(\d+)\."
    return [
        text.HEADS,
        *hub.embedding(prefix + r"embeddings\.word_embeddings", "words"),
        *hub.embedding(prefix + r"embeddings\.position_embeddings", "positions"),
        *hub.layer_norm(prefix + r"embeddings\.LayerNorm", "norm"),
        *hub.linear(layer + r"attention\.q_lin", r"blocks.\1.attention.query"),
        *hub.linear(layer + r"attention\.k_lin", r"blocks.\1.attention.key"),
        *hub.linear(layer + r"attention\.v_lin", r"blocks.\1.attention.value"),
        *hub.linear(layer + r"attention\.out_lin", r"blocks.\1.attention.out"),
        *hub.layer_norm(layer + "sa_layer_norm", r"blocks.\1.attention_norm"),
        *hub.linear(layer + r"ffn\.lin1", r"blocks.\1.mlp.up"),
        *hub.linear(layer + r"ffn\.lin2", r"blocks.\1.mlp.down"),
        *hub.layer_norm(layer + "output_layer_norm", r"blocks.\1.mlp_norm"),
    ]


def load(
    *,
    weights: str = "distilbert/distilbert-base-uncased",
    revision: str | None = None,
    layers: Sequence[str | int] = (),
    dtype: str = "float32",
    options: text.TextOptions = text.TextOptions(),
) -> Tower:
    """Build the text tower of a DistilBERT checkpoint.

    Args:
      weights: folder or hub id.
      layers: outputs by name or number; `sentence_embedding` unless given.
      dtype: of parameters and computation, float32 or bfloat16.

    Raises:
      InputError: the checkpoint is missing, damaged or of another architecture, or a layer is
        unknown.
    """
    checkpoint = hub.find(weights, revision)
    config = read_config(hub.read_config(checkpoint.folder, MODEL_TYPES))
    graph, params = hub.load_module(
        lambda: Bert(config, pooler=False, rngs=nnx.Rngs(0)),
        checkpoint.weights,
        key_map(),
        jnp.dtype(dtype),
    )
    return text.tower(
        graph,
        params,
        lambda module, ids, mask: module(ids, mask),
        folder=checkpoint.folder,
        options=options,
        window=config.max_position_embeddings,
        layers=layers,
        about={"encoder": f"distilbert:{checkpoint.name}", "revision": checkpoint.revision},
    )
