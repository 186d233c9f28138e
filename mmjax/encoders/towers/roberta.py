"""RoBERTa (Liu et al. 2019), XLM-RoBERTa and CamemBERT.

They are BERT with positions that count only tokens, not padding. A text's vector is pooled from the
last hidden state as the checkpoint's sentence-transformers files say.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx

from mmjax.encoders.checkpoints import hub
from mmjax.encoders.core import Tower
from mmjax.encoders.inputs import text
from mmjax.encoders.towers import bert
from mmjax.encoders.towers.bert import Bert, Config

MODEL_TYPES = ("roberta", "xlm-roberta", "camembert")


def padding_of(config: dict[str, Any]) -> int:
    """Return the padding id, 1 unless config.json has another."""
    padding = config.get("pad_token_id")
    return 1 if padding is None else padding


def load(
    *,
    weights: str = "FacebookAI/roberta-base",
    revision: str | None = None,
    layers: Sequence[str | int] = (),
    dtype: str = "float32",
    options: text.TextOptions = text.TextOptions(),
) -> Tower:
    """Build the text tower of a RoBERTa checkpoint.

    Args:
      weights: folder or hub id.
      layers: outputs by name or number; `sentence_embedding` unless given.
      dtype: of parameters and computation, float32 or bfloat16.

    Raises:
      InputError: the checkpoint is missing, damaged or of another architecture, or a layer is
        unknown.
    """
    checkpoint = hub.find(weights, revision)
    config_json = hub.read_config(checkpoint.folder, MODEL_TYPES)
    config, padding = Config.read(config_json), padding_of(config_json)
    pooler = hub.has(checkpoint.weights, r"(?:roberta\.)?pooler\..*")
    graph, params = hub.load_module(
        lambda: Bert(config, pooler=pooler, padding=padding, rngs=nnx.Rngs(0)),
        checkpoint.weights,
        bert.key_map("roberta"),
        jnp.dtype(dtype),
    )
    return text.tower(
        graph,
        params,
        lambda module, ids, mask: module(ids, mask),
        folder=checkpoint.folder,
        options=options,
        window=config.max_position_embeddings - padding - 1,
        layers=layers,
        about={"encoder": f"roberta:{checkpoint.name}", "revision": checkpoint.revision},
    )
