"""BERT (Devlin et al. 2019) and models of the same layout.

MiniLM is among them. Token, position and segment embeddings, then post-norm transformer blocks with
exact GELU or another activation that config.json names. A text's vector is pooled from the last
hidden state as the checkpoint's sentence-transformers files say.
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
from mmjax.encoders.checkpoints.hub import Rule
from mmjax.encoders.core import Tower
from mmjax.encoders.inputs import text
from mmjax.encoders.layers import ACTIVATIONS, Block, Embedding, layer_norm
from mmjax.encoders.outputs import Outputs

MODEL_TYPES = ("bert",)  # of config.json


@dataclass(frozen=True)
class Config:
    """Shape of the encoder, by the names of config.json."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int  # 0: no segments
    hidden_act: str
    layer_norm_eps: float

    @classmethod
    def read(cls, config: dict[str, Any]) -> "Config":
        """Read the shape from config.json.

        Raises:
          InputError: a key is missing, or config.json asks for a variant that this tower does not
            compute.
        """
        kind = config.get("position_embedding_type", "absolute")
        if kind != "absolute" or config.get("is_decoder"):
            raise InputError(f"BERT with {kind} positions or as a decoder is not supported")
        missing = [name for name in cls.__dataclass_fields__ if name not in config]
        if missing:
            raise InputError(f"config.json lacks {', '.join(missing)}")
        if config["hidden_act"] not in ACTIVATIONS:
            raise InputError(f"hidden_act {config['hidden_act']!r} is none of {[*ACTIVATIONS]}")
        return cls(**{name: config[name] for name in cls.__dataclass_fields__})


class Bert(nnx.Module):
    """BERT's encoder; `pooler` adds a tanh layer on the first token.

    With `padding`, the padding id, token positions start at padding + 1, as in RoBERTa.
    """

    def __init__(
        self,
        config: Config,
        *,
        pooler: bool = True,
        padding: int | None = None,
        rngs: nnx.Rngs,
    ):
        width = config.hidden_size
        self.padding = padding
        self.words = Embedding(config.vocab_size, width, rngs=rngs)
        self.positions = Embedding(config.max_position_embeddings, width, rngs=rngs)
        segments = config.type_vocab_size
        self.segments = Embedding(segments, width, rngs=rngs) if segments else None
        self.norm = layer_norm(width, config.layer_norm_eps, rngs=rngs)
        self.blocks = nnx.List(
            Block(
                width,
                config.num_attention_heads,
                config.intermediate_size,
                activation=config.hidden_act,
                epsilon=config.layer_norm_eps,
                norm_first=False,
                rngs=rngs,
            )
            for _ in range(config.num_hidden_layers)
        )
        self.pooler = nnx.Linear(width, width, rngs=rngs) if pooler else None

    def __call__(
        self,
        ids: jax.Array,
        mask: jax.Array,
        segments: jax.Array | None = None,
        bias: jax.Array | None = None,
    ) -> Outputs:
        """Return the hidden states of a batch of texts.

        Args:
          ids: int [B, L].
          mask: bool [B, L], true at tokens.
          segments: int [B, L]; zeros unless given.
          bias: [1, H, L, L], added to the attention scores of every block.

        Returns:
          hidden_states.0 (the embeddings) to hidden_states.N and last_hidden_state [B, L, D] and,
          with the pooler, pooler_output [B, D].
        """
        positions = jnp.arange(ids.shape[1])[None]
        if self.padding is not None:
            positions = count_tokens(ids, mask, self.padding)
        embedded = self.words(ids) + self.positions(positions)
        if self.segments is not None:
            embedded += self.segments(jnp.zeros_like(ids) if segments is None else segments)
        hidden = [self.norm(embedded)]
        attention_mask = mask.astype(bool)[:, None, :]  # [B, 1, L]: every query sees the same keys
        for block in self.blocks:
            hidden.append(block(hidden[-1], attention_mask, bias))
        results = {**outputs.states(hidden), "last_hidden_state": hidden[-1]}
        if self.pooler is not None:
            results["pooler_output"] = jnp.tanh(self.pooler(hidden[-1][:, 0]))
        return results


def count_tokens(ids: jax.Array, mask: jax.Array, padding: int) -> jax.Array:
    """Return RoBERTa's position [B, L] of each token.

    Tokens count from padding + 1; padding has the position `padding`.
    """
    is_token = (mask.astype(bool) & (ids != padding)).astype(jnp.int32)
    return jnp.cumsum(is_token, axis=1) * is_token + padding


def key_map(prefix: str = "bert", *, pooler: bool = True) -> list[Rule]:
    """Return the key map of BertModel.

    Names come with or without the `prefix` that task models add.
    """
    prefix = rf"(?:{prefix}\.)?"
    layer = prefix + r"encoder\.layer\.(\d+)\."
    return [
        text.HEADS,
        Rule(prefix + r"embeddings\.(?:position_ids|token_type_ids)", None),  # buffers
        *([] if pooler else [Rule(prefix + r"pooler\..*", None)]),
        *hub.embedding(prefix + r"embeddings\.word_embeddings", "words"),
        *hub.embedding(prefix + r"embeddings\.position_embeddings", "positions"),
        *hub.embedding(prefix + r"embeddings\.token_type_embeddings", "segments"),
        *hub.layer_norm(prefix + r"embeddings\.LayerNorm", "norm"),
        *hub.linear(layer + r"attention\.self\.(query|key|value)", r"blocks.\1.attention.\2"),
        *hub.linear(layer + r"attention\.output\.dense", r"blocks.\1.attention.out"),
        *hub.layer_norm(layer + r"attention\.output\.LayerNorm", r"blocks.\1.attention_norm"),
        *hub.linear(layer + r"intermediate\.dense", r"blocks.\1.mlp.up"),
        *hub.linear(layer + r"output\.dense", r"blocks.\1.mlp.down"),
        *hub.layer_norm(layer + r"output\.LayerNorm", r"blocks.\1.mlp_norm"),
        *hub.linear(prefix + r"pooler\.dense", "pooler"),
    ]


def load(
    *,
    weights: str = "all-MiniLM-L6-v2",
    revision: str | None = None,
    layers: Sequence[str | int] = (),
    dtype: str = "float32",
    options: text.TextOptions = text.TextOptions(),
) -> Tower:
    """Build the text tower of a BERT checkpoint.

    Args:
      weights: folder, hub id or packaged name.
      layers: outputs by name or number; `sentence_embedding` unless given.
      dtype: of parameters and computation, float32 or bfloat16.

    Raises:
      InputError: the checkpoint is missing, damaged or of another architecture, or a layer is
        unknown.
    """
    checkpoint = hub.find(weights, revision)
    config = Config.read(hub.read_config(checkpoint.folder, MODEL_TYPES))
    pooler = hub.has(checkpoint.weights, r"(?:bert\.)?pooler\..*")
    graph, params = hub.load_module(
        lambda: Bert(config, pooler=pooler, rngs=nnx.Rngs(0)),
        checkpoint.weights,
        key_map(pooler=pooler),
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
        about={"encoder": f"bert:{checkpoint.name}", "revision": checkpoint.revision},
    )
