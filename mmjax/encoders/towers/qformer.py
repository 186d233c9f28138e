"""BLIP-2's Q-Former (Li et al. 2023): BERT with learned image queries.

The queries are its first tokens.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.encoders.checkpoints import hub
from mmjax.encoders.checkpoints.hub import Rule
from mmjax.encoders.layers import Attention, Embedding, Mlp, layer_norm

LAYER = r"qformer\.encoder\.layer\.(\d+)\."


@dataclass(frozen=True)
class Config:
    """Shape of the Q-Former, by the names of config.json.

    Fields that config.json omits take transformers' defaults.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    max_position_embeddings: int = 512
    cross_attention_frequency: int = 2
    num_query_tokens: int = 32
    image_text_hidden_size: int = 256


class Block(nnx.Module):
    """BERT's block with cross-attention and a separate MLP for queries.

    Args:
      looks: width of the image tokens that queries attend to; None in blocks without
        cross-attention.
      modality: selects the layers: those for queries, for texts, or both.
    """

    def __init__(self, config: Config, looks: int | None, modality: str, *, rngs: nnx.Rngs):
        width, heads = config.hidden_size, config.num_attention_heads

        def norm() -> nnx.LayerNorm:
            return layer_norm(width, config.layer_norm_eps, rngs=rngs)

        def mlp() -> Mlp:
            return Mlp(width, config.intermediate_size, config.hidden_act, rngs=rngs)

        self.attention = Attention(width, heads, rngs=rngs)
        self.attention_norm = norm()
        self.cross = Attention(width, heads, context=looks, rngs=rngs) if looks else None
        self.cross_norm = norm() if looks else None
        self.query_mlp = mlp() if "image" in modality else None
        self.query_mlp_norm = norm() if "image" in modality else None
        self.mlp = mlp() if "text" in modality else None
        self.mlp_norm = norm() if "text" in modality else None

    def __call__(
        self, x: jax.Array, mask: jax.Array | None, queries: int, image: jax.Array | None
    ) -> jax.Array:
        """Apply the block to queries and text tokens.

        Args:
          x: [B, L, D].
          mask: bool [B, 1, L].
          queries: number of queries; they are the first tokens of x.
          image: [B, N, V].
        """
        x = self.attention_norm(x + self.attention(x, mask))
        query_states, text_states = x[:, :queries], x[:, queries:]
        if self.cross is not None and self.cross_norm is not None:
            query_states = self.cross_norm(query_states + self.cross(query_states, context=image))
        if self.query_mlp is not None and self.query_mlp_norm is not None:
            query_states = self.query_mlp_norm(query_states + self.query_mlp(query_states))
        if self.mlp is not None and self.mlp_norm is not None:
            text_states = self.mlp_norm(text_states + self.mlp(text_states))
        return jnp.concatenate([query_states, text_states], axis=1)


class Qformer(nnx.Module):
    """Blocks of the Q-Former.

    Every `cross_attention_frequency`-th block, the first included, cross-attends to the image.
    """

    def __init__(self, config: Config, vision: int, modality: str, *, rngs: nnx.Rngs):
        self.norm = layer_norm(config.hidden_size, config.layer_norm_eps, rngs=rngs)
        frequency = config.cross_attention_frequency if "image" in modality else None
        self.blocks = nnx.List(
            Block(config, vision if frequency and n % frequency == 0 else None, modality, rngs=rngs)
            for n in range(config.num_hidden_layers)
        )

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        queries: int = 0,
        image: jax.Array | None = None,
    ) -> list[jax.Array]:
        """Return all hidden states [B, L, D], the embeddings' first.

        Arguments are those of `Block`.
        """
        hidden = [self.norm(x)]
        for block in self.blocks:
            hidden.append(block(hidden[-1], mask, queries, image))
        return hidden


class Words(nnx.Module):
    """Token embeddings plus positions, not yet normalised."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.words = Embedding(config.vocab_size, config.hidden_size, rngs=rngs)
        self.positions = Embedding(config.max_position_embeddings, config.hidden_size, rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        return self.words(ids) + self.positions(jnp.arange(ids.shape[1]))[None]


def key_map() -> list[Rule]:
    """Return the key map of Blip2QFormerModel and Blip2TextEmbeddings.

    It fills `qformer` and `embeddings`.
    """
    layer, block = LAYER, r"qformer.blocks.\1."
    rules = hub.layer_norm(r"qformer\.layernorm", "qformer.norm")
    for theirs, ours in ((r"attention\.", "attention"), (r"crossattention\.", "cross")):
        rules += [
            *hub.linear(layer + theirs + r"attention\.(query|key|value)", block + ours + r".\2"),
            *hub.linear(layer + theirs + r"output\.dense", block + ours + ".out"),
            *hub.layer_norm(layer + theirs + r"output\.LayerNorm", block + ours + "_norm"),
        ]
    for theirs, ours in (("", "mlp"), ("_query", "query_mlp")):
        rules += [
            *hub.linear(layer + rf"intermediate{theirs}\.dense", block + ours + ".up"),
            *hub.linear(layer + rf"output{theirs}\.dense", block + ours + ".down"),
            *hub.layer_norm(layer + rf"output{theirs}\.LayerNorm", block + ours + "_norm"),
        ]
    return [
        *rules,
        Rule(r"embeddings\.position_ids", None),  # buffer 0, 1, 2, …
        *hub.embedding(r"embeddings\.word_embeddings", "embeddings.words"),
        *hub.embedding(r"embeddings\.position_embeddings", "embeddings.positions"),
    ]


def unused(modality: str) -> list[Rule]:
    """Return rules that ignore what a modality does not need.

    They come before those of `key_map`.
    """
    patterns = []
    if "image" not in modality:
        patterns.append(LAYER + r"(?:crossattention|intermediate_query|output_query)\..*")
    if "text" not in modality:
        patterns += [r"embeddings\..*", LAYER + r"(?:intermediate|output)\..*"]
    return [Rule(pattern, None) for pattern in patterns]
