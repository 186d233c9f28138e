"""BERT (Devlin et al. 2019) and its children of the same layout, among them MiniLM.

Token, position and segment embeddings, then post-norm transformer blocks with exact GELU; a text's
vector is pooled from the last hidden state as the checkpoint's sentence-transformers files say.
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
    """What config.json says of the shape, by its own names."""

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
        """Raises InputError for a missing key and for variants this tower does not compute."""
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
    """BERT's encoder; `pooler` adds the tanh layer on the first token.

    With `padding`, the id of padding, tokens count from padding + 1 on, as RoBERTa's do.
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
        """ids: int [B, L]; mask: bool [B, L], true at tokens; segments: int [B, L], zeros.

        bias: [1, H, L, L], added to every block's scores.

        Gives hidden_states.0 (the embeddings) to hidden_states.N, last_hidden_state [B, L, D] and,
        with the pooler, pooler_output [B, D].
        """
        places = jnp.arange(ids.shape[1])[None]
        if self.padding is not None:
            places = count_tokens(ids, mask, self.padding)
        embedded = self.words(ids) + self.positions(places)
        if self.segments is not None:
            embedded += self.segments(jnp.zeros_like(ids) if segments is None else segments)
        hidden = [self.norm(embedded)]
        seen = mask.astype(bool)[:, None, :]  # [B, 1, L]: every query sees the same keys
        for block in self.blocks:
            hidden.append(block(hidden[-1], seen, bias))
        found = {**outputs.states(hidden), "last_hidden_state": hidden[-1]}
        if self.pooler is not None:
            found["pooler_output"] = jnp.tanh(self.pooler(hidden[-1][:, 0]))
        return found


def count_tokens(ids: jax.Array, mask: jax.Array, padding: int) -> jax.Array:
    """Places [B, L] of tokens, counted from padding + 1 on; what is padding is at `padding`."""
    there = (mask.astype(bool) & (ids != padding)).astype(jnp.int32)
    return jnp.cumsum(there, axis=1) * there + padding


def key_map(prefix: str = "bert", *, pooler: bool = True) -> list[Rule]:
    """Names of BertModel, with or without the `prefix` that task models put before them."""
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
    options: text.Options = text.Options(),
) -> Tower:
    """The text tower of a checkpoint: folder, hub id or packaged name.

    Args:
      layers: outputs by name or number; `sentence_embedding` unless given.
      dtype: of parameters and computation, float32 or bfloat16.

    Raises:
      InputError: no such checkpoint, of another architecture, or damaged; no such layer.
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
