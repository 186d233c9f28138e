"""The language model of a vision-language model: grouped-query attention, RMSNorm, gated MLP.

Its layers are stacked into one array a parameter and run by a scan, so that compile time does not
grow with depth. It is called in two ways: `read` takes whole prompts, perhaps after a prefix that
was read before, and `step` one token of every running answer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.encoders.checkpoints.int8 import Dense
from mmjax.encoders.layers import ACTIVATIONS, Embedding, over, stack
from mmjax.encoders.vlm import rotary
from mmjax.encoders.vlm.rotary import Rotary, Turn
from mmjax.parallel.mesh import flash_attention

Keep = Callable[[jax.Array], Any]  # what to keep of a layer's states [B, L, D]


@dataclass(frozen=True)
class Config:
    """Of config.json's text part, by its own names where it has one."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    bias: bool = True  # of queries, keys and values
    out_bias: bool = False  # of what attention answers
    head_norm: bool = False  # of each head's queries and keys


class Cache(NamedTuple):
    """Keys and values of what was read, of N layers and K heads of keys."""

    k: jax.Array  # [N, B, T, K, d]
    v: jax.Array  # [N, B, T, K, d]


class Past(NamedTuple):
    """The same as `step` looks at them: a head's in one piece, ready to be multiplied."""

    k: jax.Array  # [N, B, K, d, T]
    v: jax.Array  # [N, B, K, T, d]


def past(cache: Cache, room: int) -> Past:
    """What was read, with room for `room` tokens a row."""
    free = (0, room - cache.k.shape[2])
    k, v = cache.k.transpose(0, 1, 3, 4, 2), cache.v.transpose(0, 1, 3, 2, 4)
    none = (0, 0)
    return Past(
        jnp.pad(k, (none, none, none, none, free)), jnp.pad(v, (none, none, none, free, none))
    )


class RmsNorm(nnx.Module):
    """x / sqrt(mean(x²) + ε) times a scale, computed in float32 whatever the tower computes in."""

    def __init__(self, width: int, epsilon: float, *, rngs: nnx.Rngs):
        del rngs  # nothing is drawn; as every layer has it
        self.scale = nnx.Param(jnp.ones(width))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + self.epsilon)
        scale = self.scale[...].reshape((1,) * (x.ndim - 1) + (-1,))
        return wide.astype(x.dtype) * scale


class GatedMlp(nnx.Module):
    """down(activation(gate(x)) * up(x))."""

    def __init__(
        self, width: int, hidden: int, activation: str, *, bias: bool = False, rngs: nnx.Rngs
    ):
        self.activation = ACTIVATIONS[activation]
        self.gate = Dense(width, hidden, use_bias=bias, rngs=rngs)
        self.up = Dense(width, hidden, use_bias=bias, rngs=rngs)
        self.down = Dense(hidden, width, use_bias=bias, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(self.activation(self.gate(x)) * self.up(x))


class Attention(nnx.Module):
    """Queries in groups, each group looking at one head of keys and values."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, self.d = config.hidden_size, config.head_dim
        queries, keys = (
            count * self.d for count in (config.num_attention_heads, config.num_key_value_heads)
        )
        self.query = Dense(width, queries, use_bias=config.bias, rngs=rngs)
        self.key = Dense(width, keys, use_bias=config.bias, rngs=rngs)
        self.value = Dense(width, keys, use_bias=config.bias, rngs=rngs)
        self.out = Dense(queries, width, use_bias=config.out_bias, rngs=rngs)
        normed = config.head_norm
        norm = [RmsNorm(self.d, config.rms_norm_eps, rngs=rngs) if normed else None for _ in "qk"]
        self.query_norm, self.key_norm = norm

    def project(self, x: jax.Array, by: Turn) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x: [B, L, D], to turned queries [B, L, H, d] and keys, and values, [B, L, K, d]."""
        q, k, v = (
            part(x).reshape(*x.shape[:2], -1, self.d) for part in (self.query, self.key, self.value)
        )
        if self.query_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        return rotary.rotate(q, by), rotary.rotate(k, by), v

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
        """mask: bool [1 or B, Q, T], true where to look; to [B, Q, D]."""
        kind = flash_attention(q.dtype)
        seen = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], implementation=kind)
        return self.out(seen.reshape(*q.shape[:2], -1))

    def look_back(self, q: jax.Array, past: Past, at: jax.Array) -> jax.Array:
        """One token a row, q [B, 1, H, d], at a layer's past until `at`, int [B]; to [B, 1, D].

        Nothing is computed but what is kept is read: the past's bytes are what it costs.
        """
        batch, heads, _, length = past.k.shape
        grouped = q.reshape(batch, heads, -1, self.d)
        wide = {"preferred_element_type": jnp.float32}
        scores = jnp.einsum("bkgd,bkdt->bkgt", grouped, past.k, **wide) * self.d**-0.5
        seen = (jnp.arange(length)[None] <= at[:, None])[:, None, None]
        shares = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1).astype(past.v.dtype)
        return self.out(jnp.einsum("bkgt,bktd->bkgd", shares, past.v).reshape(batch, 1, -1))


class Block(nnx.Module):
    """Attention and gated MLP, each with an RMSNorm before it and a residual around it."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.attention = Attention(config, rngs=rngs)
        self.attention_norm = RmsNorm(width, config.rms_norm_eps, rngs=rngs)
        self.mlp = GatedMlp(width, config.intermediate_size, config.hidden_act, rngs=rngs)
        self.mlp_norm = RmsNorm(width, config.rms_norm_eps, rngs=rngs)

    def project(self, x: jax.Array, by: Turn) -> tuple[jax.Array, jax.Array, jax.Array]:
        return self.attention.project(self.attention_norm(x), by)

    def close(self, x: jax.Array, seen: jax.Array) -> jax.Array:
        """seen: what attention answered."""
        x = x + seen
        return x + self.mlp(self.mlp_norm(x))


class Decoder(nnx.Module):
    """Embedding, blocks, norm and head; `head` is None where the embedding is used again."""

    def __init__(self, config: Config, turns: Rotary, *, rngs: nnx.Rngs):
        self.config, self.turns = config, turns
        self.embed = Embedding(config.vocab_size, config.hidden_size, rngs=rngs)
        self.blocks = stack(lambda rngs: Block(config, rngs=rngs), config.num_hidden_layers, rngs)
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps, rngs=rngs)
        shape = config.hidden_size, config.vocab_size
        tied = config.tie_word_embeddings
        self.head = None if tied else nnx.Linear(*shape, use_bias=False, rngs=rngs)

    def logits(self, states: jax.Array) -> jax.Array:
        """Normed states [..., D], to [..., V] in float32."""
        table = self.embed.table[...].T if self.head is None else self.head.kernel[...]
        return jnp.matmul(states, table, preferred_element_type=jnp.float32)

    def read(
        self,
        x: jax.Array,
        positions: jax.Array,
        real: jax.Array,
        keep: Keep,
        prefix: Cache | None = None,
        deep: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    ) -> tuple[jax.Array, Cache, Any]:
        """Reads prompts, each token looking at those before it and at the prefix.

        Args:
          x: [B, L, D] the tokens' embeddings.
          positions: int [B, A, L] along each axis.
          real: bool [B, L], false at padding, on whichever side it is.
          keep: applied to x, to every layer's states but the last's, before `deep`, and to the
            normed states: transformers' hidden states. Nothing else of them is kept.
          prefix: of a batch of 1: every row begins with it.
          deep: (n, states) to states after layer n, where a model adds to them.

        Returns:
          Normed states [B, L, D]; keys and values of x alone; what was kept, stacked [N + 1, …].
        """
        by = rotary.turn(self.turns, positions)
        length = x.shape[1]
        mask = jnp.tril(jnp.ones((length, length), bool))[None] & real[:, None, :]
        if prefix is not None:
            before = prefix.k.shape[2]
            mask = jnp.pad(mask, ((0, 0), (0, 0), (before, 0)), constant_values=True)

        def layer(block: Block, x: jax.Array, given: Any) -> tuple[jax.Array, Any]:
            number, past = given
            q, k, v = block.project(x, by)
            keys, values = (k, v) if past is None else (_after(past.k, k), _after(past.v, v))
            y = block.close(x, block.attention.attend(q, keys, values, mask))
            return y if deep is None else deep(number, y), (Cache(k, v), keep(y))

        count = jnp.arange(self.config.num_hidden_layers)
        last, (cache, kept) = over(self.blocks, layer, x, (count, prefix))
        last = self.norm(last)
        return last, cache, _all(keep(x), kept, keep(last))

    def read_words(self, ids: jax.Array, real: jax.Array, keep: Keep) -> tuple[Any, Cache, Any]:
        """`read` of words alone, int [B, L], the first at position 0."""
        where = jnp.broadcast_to(jnp.arange(ids.shape[1])[None, None], (len(ids), 3, ids.shape[1]))
        return self.read(self.embed(ids), where, real, keep)

    def step(
        self,
        blocks: Any,
        ids: jax.Array,
        positions: jax.Array,
        past: Any,
        at: jax.Array,
        keep: Keep,
    ) -> tuple[jax.Array, Any, Any]:
        """Reads one more token of every row.

        Args:
          blocks: `self.blocks`, or a list of their layers; with a list the past may be a list of
            a layer's each, without the first axis.
          ids: int [B].
          positions: int [B, A].
          past: what the rows have read so far, with room; updated in place when donated.
          at: int [B], where in the past the token belongs: it looks at all until there.
          keep: as in `read`.

        Returns:
          Normed states [B, D], the past with the token, what was kept.
        """
        by = rotary.turn(self.turns, positions[:, :, None])
        rows = jnp.arange(len(ids))

        def layer(block: Block, carry: Any, number: Any) -> tuple[Any, Any]:
            x, past = carry
            q, k, v = block.project(x, by)
            if isinstance(past, list):
                old = past[number]
                mine = Past(
                    old.k.at[rows, :, :, at].set(k[:, 0]), old.v.at[rows, :, at].set(v[:, 0])
                )
                past = [*past[:number], mine, *past[number + 1 :]]
            else:
                past = Past(
                    past.k.at[number, rows, :, :, at].set(k[:, 0]),
                    past.v.at[number, rows, :, at].set(v[:, 0]),
                )
                mine = Past(past.k[number], past.v[number])
            y = block.close(x, block.attention.look_back(q, mine, at))
            return (y, past), keep(y)

        # Of a list of blocks the numbers must be known, not traced.
        x, count = self.embed(ids)[:, None], np.arange(self.config.num_hidden_layers)
        (last, past), kept = over(blocks, layer, (x, past), count)
        last = self.norm(last)
        return last[:, 0], past, _all(keep(x), kept, keep(last))


def _after(past: jax.Array, new: jax.Array) -> jax.Array:
    """The prefix's keys [1, P, K, d] before each row's own [B, L, K, d]."""
    shape = (new.shape[0], *past.shape[1:])
    return jnp.concatenate([jnp.broadcast_to(past, shape).astype(new.dtype), new], axis=1)


def _all(first: Any, layers: Any, last: Any) -> Any:
    """What was kept [N + 1, ...]; the normed states stand for the last layer's."""
    return jax.tree.map(
        lambda one, rest, end: jnp.concatenate([one[None], rest[:-1], end[None]]),
        first,
        layers,
        last,
    )
