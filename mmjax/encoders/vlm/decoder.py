"""Decoder of vision-language models: grouped-query attention, RMSNorm, gated MLP.

The layers are stacked into one array a parameter and run by a scan, so compile time does not grow
with depth. `read` prefills whole prompts, optionally after a cached prefix. `step` decodes one
token of every running answer.
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

Keep = Callable[[jax.Array], Any]  # maps a layer's states [B, L, D] to the part that is kept


@dataclass(frozen=True)
class Config:
    """Configuration of the decoder.

    The names are those of config.json's text part, where it has one for the field.
    """

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
    bias: bool = True  # of the query, key and value projections
    out_bias: bool = False  # of the output projection of attention
    head_norm: bool = False  # RMSNorm of each head's queries and keys


class Cache(NamedTuple):
    """Key-value cache in the layout of prefill.

    N layers, T tokens, K key-value heads of width d.
    """

    k: jax.Array  # [N, B, T, K, d]
    v: jax.Array  # [N, B, T, K, d]


class Past(NamedTuple):
    """Key-value cache in the layout of `step`.

    Each head's keys and values are contiguous, ready for a matrix product.
    """

    k: jax.Array  # [N, B, K, d, T]
    v: jax.Array  # [N, B, K, T, d]


def past(cache: Cache, room: int) -> Past:
    """Convert a cache to `Past`, padded to `room` tokens a row."""
    extra = (0, room - cache.k.shape[2])
    k, v = cache.k.transpose(0, 1, 3, 4, 2), cache.v.transpose(0, 1, 3, 2, 4)
    unpadded = (0, 0)
    return Past(
        jnp.pad(k, (unpadded, unpadded, unpadded, unpadded, extra)),
        jnp.pad(v, (unpadded, unpadded, unpadded, extra, unpadded)),
    )


class RmsNorm(nnx.Module):
    """RMS normalisation with a scale: x / sqrt(mean(x²) + ε) * scale.

    The normalisation is computed in float32 in every dtype of the tower.
    """

    def __init__(self, width: int, epsilon: float, *, rngs: nnx.Rngs):
        del rngs  # unused: no random initialisation, but every layer takes rngs
        self.scale = nnx.Param(jnp.ones(width))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + self.epsilon)
        scale = self.scale[...].reshape((1,) * (x.ndim - 1) + (-1,))
        return wide.astype(x.dtype) * scale


class GatedMlp(nnx.Module):
    """Gated MLP: down(activation(gate(x)) * up(x))."""

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
    """Grouped-query attention: a group of query heads shares one key-value head."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, self.d = config.hidden_size, config.head_dim
        queries, keys = (
            count * self.d for count in (config.num_attention_heads, config.num_key_value_heads)
        )
        self.query = Dense(width, queries, use_bias=config.bias, rngs=rngs)
        self.key = Dense(width, keys, use_bias=config.bias, rngs=rngs)
        self.value = Dense(width, keys, use_bias=config.bias, rngs=rngs)
        self.out = Dense(queries, width, use_bias=config.out_bias, rngs=rngs)
        head_norm = config.head_norm
        norm = [
            RmsNorm(self.d, config.rms_norm_eps, rngs=rngs) if head_norm else None for _ in "qk"
        ]
        self.query_norm, self.key_norm = norm

    def project(self, x: jax.Array, by: Turn) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Project states to rotated queries, rotated keys, and values.

        Args:
          x: [B, L, D].
          by: cosines and sines of the positions.

        Returns:
          Queries [B, L, H, d], keys and values [B, L, K, d].
        """
        q, k, v = (
            part(x).reshape(*x.shape[:2], -1, self.d) for part in (self.query, self.key, self.value)
        )
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        return rotary.rotate(q, by), rotary.rotate(k, by), v

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
        """Attend from queries to keys and values, and project the result.

        Args:
          q: [B, Q, H, d].
          k: [B, T, K, d].
          v: [B, T, K, d].
          mask: bool [1 or B, Q, T], true where a query attends to a key.

        Returns:
          [B, Q, D].
        """
        kind = flash_attention(q.dtype)
        attended = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], implementation=kind)
        return self.out(attended.reshape(*q.shape[:2], -1))

    def look_back(self, q: jax.Array, past: Past, at: jax.Array) -> jax.Array:
        """Attend from one token a row to the layer's past.

        The cost is memory-bound: it is the reading of the past's bytes.

        Args:
          q: [B, 1, H, d].
          past: of one layer, without the layer axis.
          at: int [B], the last position attended to.

        Returns:
          [B, 1, D].
        """
        batch, heads, _, length = past.k.shape
        grouped = q.reshape(batch, heads, -1, self.d)
        precision = {"preferred_element_type": jnp.float32}
        scores = jnp.einsum("bkgd,bkdt->bkgt", grouped, past.k, **precision) * self.d**-0.5
        visible = (jnp.arange(length)[None] <= at[:, None])[:, None, None]
        shares = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1).astype(past.v.dtype)
        return self.out(jnp.einsum("bkgt,bktd->bkgd", shares, past.v).reshape(batch, 1, -1))


class Block(nnx.Module):
    """Decoder block: attention and gated MLP.

    Each has an RMSNorm before it and a residual around it.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.attention = Attention(config, rngs=rngs)
        self.attention_norm = RmsNorm(width, config.rms_norm_eps, rngs=rngs)
        self.mlp = GatedMlp(width, config.intermediate_size, config.hidden_act, rngs=rngs)
        self.mlp_norm = RmsNorm(width, config.rms_norm_eps, rngs=rngs)

    def project(self, x: jax.Array, by: Turn) -> tuple[jax.Array, jax.Array, jax.Array]:
        return self.attention.project(self.attention_norm(x), by)

    def close(self, x: jax.Array, seen: jax.Array) -> jax.Array:
        """Add the attention output `seen` and apply the MLP."""
        x = x + seen
        return x + self.mlp(self.mlp_norm(x))


class Decoder(nnx.Module):
    """Language model: embedding, blocks, norm and head.

    `head` is None where the embedding is reused (tied weights).
    """

    def __init__(self, config: Config, turns: Rotary, *, rngs: nnx.Rngs):
        self.config, self.turns = config, turns
        self.embed = Embedding(config.vocab_size, config.hidden_size, rngs=rngs)
        self.blocks = stack(lambda rngs: Block(config, rngs=rngs), config.num_hidden_layers, rngs)
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps, rngs=rngs)
        shape = config.hidden_size, config.vocab_size
        tied = config.tie_word_embeddings
        self.head = None if tied else nnx.Linear(*shape, use_bias=False, rngs=rngs)

    def logits(self, states: jax.Array) -> jax.Array:
        """Compute the logits, float32 [..., V], of normed states [..., D]."""
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
        """Prefill prompts with causal attention after an optional prefix.

        Args:
          x: [B, L, D], the tokens' embeddings.
          positions: int [B, A, L], along each axis.
          real: bool [B, L], false at padding on either side.
          keep: applied to x, to the states of every layer but the last (before `deep`), and to the
            normed states: transformers' hidden states. Only its outputs are kept.
          prefix: of a batch of 1; every row begins with it.
          deep: (n, states) to the states after layer n, for models that add to them.

        Returns:
          Normed states [B, L, D]; keys and values of x without the prefix; the outputs of `keep`,
          stacked [N + 1, …].
        """
        by = rotary.turn(self.turns, positions)
        length = x.shape[1]
        mask = jnp.tril(jnp.ones((length, length), bool))[None] & real[:, None, :]
        if prefix is not None:
            prefix_length = prefix.k.shape[2]
            mask = jnp.pad(mask, ((0, 0), (0, 0), (prefix_length, 0)), constant_values=True)

        def layer(block: Block, x: jax.Array, given: Any) -> tuple[jax.Array, Any]:
            number, past = given
            q, k, v = block.project(x, by)
            keys, values = (k, v) if past is None else (_after(past.k, k), _after(past.v, v))
            y = block.close(x, block.attention.attend(q, keys, values, mask))
            return y if deep is None else deep(number, y), (Cache(k, v), keep(y))

        numbers = jnp.arange(self.config.num_hidden_layers)
        last, (cache, kept) = over(self.blocks, layer, x, (numbers, prefix))
        last = self.norm(last)
        return last, cache, _all(keep(x), kept, keep(last))

    def read_words(self, ids: jax.Array, real: jax.Array, keep: Keep) -> tuple[Any, Cache, Any]:
        """Prefill text without images, int [B, L], from position 0."""
        positions = jnp.broadcast_to(
            jnp.arange(ids.shape[1])[None, None], (len(ids), 3, ids.shape[1])
        )
        return self.read(self.embed(ids), positions, real, keep)

    def step(
        self,
        blocks: Any,
        ids: jax.Array,
        positions: jax.Array,
        past: Any,
        at: jax.Array,
        keep: Keep,
    ) -> tuple[jax.Array, Any, Any]:
        """Decode one more token of every row.

        Args:
          blocks: `self.blocks`, or a list of their layers. With a list, `past` may be a list with
            one entry a layer, without the layer axis.
          ids: int [B].
          positions: int [B, A].
          past: keys and values read so far, with free room; updated in place when donated.
          at: int [B], index of the token in the past; the token attends to all up to it.
          keep: as in `read`.

        Returns:
          Normed states [B, D]; the past with the token; the outputs of `keep`.
        """
        by = rotary.turn(self.turns, positions[:, :, None])
        rows = jnp.arange(len(ids))

        def layer(block: Block, carry: Any, number: Any) -> tuple[Any, Any]:
            x, past = carry
            q, k, v = block.project(x, by)
            if isinstance(past, list):
                previous = past[number]
                layer_past = Past(
                    previous.k.at[rows, :, :, at].set(k[:, 0]),
                    previous.v.at[rows, :, at].set(v[:, 0]),
                )
                past = [*past[:number], layer_past, *past[number + 1 :]]
            else:
                past = Past(
                    past.k.at[number, rows, :, :, at].set(k[:, 0]),
                    past.v.at[number, rows, :, at].set(v[:, 0]),
                )
                layer_past = Past(past.k[number], past.v[number])
            y = block.close(x, block.attention.look_back(q, layer_past, at))
            return (y, past), keep(y)

        # A list of blocks needs concrete layer numbers, not traced ones.
        x, numbers = self.embed(ids)[:, None], np.arange(self.config.num_hidden_layers)
        (last, past), kept = over(blocks, layer, (x, past), numbers)
        last = self.norm(last)
        return last[:, 0], past, _all(keep(x), kept, keep(last))


def _after(past: jax.Array, new: jax.Array) -> jax.Array:
    """Concatenate the prefix and each row's keys or values.

    The prefix [1, P, K, d] is broadcast over the rows [B, L, K, d].
    """
    shape = (new.shape[0], *past.shape[1:])
    return jnp.concatenate([jnp.broadcast_to(past, shape).astype(new.dtype), new], axis=1)


def _all(first: Any, layers: Any, last: Any) -> Any:
    """Stack the kept outputs to [N + 1, ...].

    The normed states replace the last layer's.
    """
    return jax.tree.map(
        lambda one, rest, end: jnp.concatenate([one[None], rest[:-1], end[None]]),
        first,
        layers,
        last,
    )
