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

from mmjax.encoders import hub, outputs, text
from mmjax.encoders.core import Tower
from mmjax.encoders.hub import Rule
from mmjax.encoders.layers import ACTIVATIONS, Block, Embedding, layer_norm
from mmjax.encoders.outputs import Outputs
from mmjax.errors import InputError


@dataclass(frozen=True)
class Config:
    """What config.json says of the shape, by its own names."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
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
    """BERT's encoder; `pooler` adds the tanh layer on the first token."""

    def __init__(self, config: Config, *, pooler: bool = True, rngs: nnx.Rngs):
        width = config.hidden_size
        self.words = Embedding(config.vocab_size, width, rngs=rngs)
        self.positions = Embedding(config.max_position_embeddings, width, rngs=rngs)
        self.segments = Embedding(config.type_vocab_size, width, rngs=rngs)
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
        self, ids: jax.Array, mask: jax.Array, segments: jax.Array | None = None
    ) -> Outputs:
        """ids: int [B, L]; mask: bool [B, L], true at tokens; segments: int [B, L], zeros.

        Gives hidden_states.0 (the embeddings) to hidden_states.N, last_hidden_state [B, L, D] and,
        with the pooler, pooler_output [B, D].
        """
        segments = jnp.zeros_like(ids) if segments is None else segments
        positions = self.positions(jnp.arange(ids.shape[1]))[None]  # [1, L, D]
        hidden = [self.norm(self.words(ids) + positions + self.segments(segments))]
        seen = mask.astype(bool)[:, None, :]  # [B, 1, L]: every query sees the same keys
        for block in self.blocks:
            hidden.append(block(hidden[-1], seen))
        found = {**outputs.states(hidden), "last_hidden_state": hidden[-1]}
        if self.pooler is not None:
            found["pooler_output"] = jnp.tanh(self.pooler(hidden[-1][:, 0]))
        return found


def key_map(*, pooler: bool = True) -> list[Rule]:
    """Names of BertModel, with or without the `bert.` that task models put before them."""
    layer = r"(?:bert\.)?encoder\.layer\.(\d+)\."
    return [
        Rule(r"(?:bert\.)?embeddings\.position_ids", None),  # a buffer that counts up
        Rule(r"cls\..*", None),  # heads of pre-training
        *([] if pooler else [Rule(r"(?:bert\.)?pooler\..*", None)]),
        Rule(r"(?:bert\.)?embeddings\.word_embeddings\.weight", "words.table"),
        Rule(r"(?:bert\.)?embeddings\.position_embeddings\.weight", "positions.table"),
        Rule(r"(?:bert\.)?embeddings\.token_type_embeddings\.weight", "segments.table"),
        *hub.layer_norm(r"(?:bert\.)?embeddings\.LayerNorm", "norm"),
        *hub.linear(layer + r"attention\.self\.(query|key|value)", r"blocks.\1.attention.\2"),
        *hub.linear(layer + r"attention\.output\.dense", r"blocks.\1.attention.out"),
        *hub.layer_norm(layer + r"attention\.output\.LayerNorm", r"blocks.\1.attention_norm"),
        *hub.linear(layer + r"intermediate\.dense", r"blocks.\1.mlp.up"),
        *hub.linear(layer + r"output\.dense", r"blocks.\1.mlp.down"),
        *hub.layer_norm(layer + r"output\.LayerNorm", r"blocks.\1.mlp_norm"),
        *hub.linear(r"(?:bert\.)?pooler\.dense", "pooler"),
    ]


def load(
    *,
    weights: str = "all-MiniLM-L6-v2",
    revision: str | None = None,
    layers: Sequence[str | int] = (),
    dtype: str = "float32",
    options: text.Options = text.Options(),  # noqa: B008 - frozen
) -> Tower:
    """The text tower of a checkpoint: folder, hub id or packaged name.

    Args:
      layers: outputs by name or number; `sentence_embedding` unless given.
      dtype: of parameters and computation, float32 or bfloat16.

    Raises:
      InputError: no such checkpoint, of another architecture, or damaged; no such layer.
    """
    checkpoint = hub.find(weights, revision)
    config = Config.read(hub.read_config(checkpoint.folder, ("bert",)))
    pooler = hub.has(checkpoint.folder, r"(?:bert\.)?pooler\..*")
    graph, params = hub.load_module(
        lambda: Bert(config, pooler=pooler, rngs=nnx.Rngs(0)),
        checkpoint.folder,
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
