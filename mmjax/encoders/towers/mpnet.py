"""MPNet (Song et al. 2020): BERT without segments, with relative position biases.

One bias for each head and each bucket of distances is added to the attention scores of every block
(Raffel et al. 2020, with both directions). Absolute positions count as in RoBERTa. A text's vector
is pooled from the last hidden state as the checkpoint's sentence-transformers files say.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.core.errors import InputError
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.checkpoints.hub import Rule
from mmjax.encoders.core import Tower
from mmjax.encoders.inputs import text
from mmjax.encoders.layers import Embedding
from mmjax.encoders.outputs import Outputs
from mmjax.encoders.towers import bert
from mmjax.encoders.towers.bert import Bert, Config

MODEL_TYPES = ("mpnet",)  # of config.json

PADDING = 1  # whatever config.json says
# Half of the buckets for each direction. The log scale ends at FAR; its last bucket starts at 91.
BUCKETS, FAR = 32, 128


def read_config(config: dict[str, Any]) -> Config:
    """Read the shape from config.json.

    Raises:
      InputError: a key is missing, or config.json asks for a variant that this tower does not
        compute.
    """
    count = config.get("relative_attention_num_buckets", BUCKETS)
    if count != BUCKETS:
        raise InputError(
            f"MPNet with {count} buckets of distances is not supported, only {BUCKETS}"
        )
    return Config.read({**config, "type_vocab_size": 0})


def buckets(length: int) -> np.ndarray:
    """Return the bucket [L, L] of each query's distance to each key.

    Distances up to 7 have one bucket each; farther ones share eight buckets whose borders grow by
    √2. Keys after the query have a second set of buckets.
    """
    offset = np.arange(length)[None] - np.arange(length)[:, None]
    distance, half = np.abs(offset), BUCKETS // 2
    exact = half // 2
    # In float32, as the checkpoints were trained: some distances lie on a border.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    steps = ratio / np.float32(np.log(FAR / exact)) * np.float32(half - exact)
    far = np.minimum(exact + steps.astype(int), half - 1)
    return np.where(distance < exact, distance, far) + half * (offset > 0)


class Mpnet(Bert):
    """BERT's encoder with relative position biases."""

    def __init__(self, config: Config, *, pooler: bool = True, rngs: nnx.Rngs):
        super().__init__(config, pooler=pooler, padding=PADDING, rngs=rngs)
        self.relative = Embedding(BUCKETS, config.num_attention_heads, rngs=rngs)

    def __call__(self, ids: jax.Array, mask: jax.Array) -> Outputs:  # type: ignore[override]
        """Return the outputs of `Bert`.

        Args:
          ids: int [B, L].
          mask: bool [B, L], true at tokens.
        """
        bias = self.relative(buckets(ids.shape[1])).transpose(2, 0, 1)[None]  # [1, H, L, L]
        return super().__call__(ids, mask, bias=bias)


def key_map() -> list[Rule]:
    """Return the key map of MPNetModel.

    Names come with or without the prefix `mpnet.` that task models add.
    """
    layer = r"(?:mpnet\.)?encoder\.layer\.(\d+)\.attention\."
    return [
        *hub.embedding(r"(?:mpnet\.)?encoder\.relative_attention_bias", "relative"),
        *hub.linear(layer + r"attn\.q", r"blocks.\1.attention.query"),
        *hub.linear(layer + r"attn\.k", r"blocks.\1.attention.key"),
        *hub.linear(layer + r"attn\.v", r"blocks.\1.attention.value"),
        *hub.linear(layer + r"attn\.o", r"blocks.\1.attention.out"),
        *hub.layer_norm(layer + "LayerNorm", r"blocks.\1.attention_norm"),
        *bert.key_map("mpnet"),
    ]


def load(
    *,
    weights: str = "sentence-transformers/all-mpnet-base-v2",
    revision: str | None = None,
    layers: Sequence[str | int] = (),
    dtype: str = "float32",
    options: text.TextOptions = text.TextOptions(),
) -> Tower:
    """Build the text tower of an MPNet checkpoint.

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
    pooler = hub.has(checkpoint.weights, r"(?:mpnet\.)?pooler\..*")
    graph, params = hub.load_module(
        lambda: Mpnet(config, pooler=pooler, rngs=nnx.Rngs(0)),
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
        window=config.max_position_embeddings - PADDING - 1,
        layers=layers,
        about={"encoder": f"mpnet:{checkpoint.name}", "revision": checkpoint.revision},
    )
