"""Autoregressive generation with a key-value cache and continuous batching.

S answers run in parallel slots. Prompts are prefilled in whole batches; their rows wait, with their
keys and values, until an answer ends and its slot is refilled. The embedding of arXiv 2508.04571 is
the state of the token that ends the answer, so that token is read as well.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.encoders.checkpoints import hub
from mmjax.encoders.layers import unstack
from mmjax.encoders.vlm import lvlm
from mmjax.encoders.vlm.decoder import Cache, Past, past
from mmjax.encoders.vlm.lvlm import Prompts


@dataclass(frozen=True)
class GenerationOptions:
    """Options of generation."""

    max_new_tokens: int = 128  # a longer answer is cut there
    temperature: float = 0.0  # 0 is greedy; else each row samples with its own key
    seed: int = 0


class Slots(NamedTuple):
    """State of S answers that run in parallel.

    An answer has at most M tokens. The states of Q layers are kept.
    """

    past: Past  # [N, S, K, d, T] and [N, S, K, T, d]
    row: Any  # int [S] input that the slot answers; -1 where the slot is free
    done: Any  # bool [S]
    token: Any  # int [S] to be read next
    at: Any  # int [S] index of the token in the cache
    position: Any  # int [S] rotary position of the token, the same along every axis
    count: Any  # int [S] tokens of the answer so far
    tokens: Any  # int [S, M + 1] the answer with its end token
    end: Any  # [Q, S, D] states of the end token
    total: Any  # float32 [Q, S, D] sum of the answer's states


class Ready(NamedTuple):
    """Prefilled prompts and the first tokens of their answers."""

    cache: Cache  # [N, B, L, K, d] without the prefix
    token: Any  # int [B]
    length: Any  # int [B] tokens of the prompt without the prefix
    position: Any  # int [B] rotary position at which the answer begins


class Prepared(NamedTuple):
    """Inputs common to all steps."""

    params: Any
    layers: Any  # the decoder's layers, unstacked; None where they stay stacked
    prefix: Cache  # of a batch of 1: keys and values of the shared prefix, which may be empty


class Programs(NamedTuple):
    """Compiled generation steps and the two sizes they were built for."""

    prepare: Callable[[Any], Prepared]  # takes the parameters
    read: Callable[[Prepared, Prompts, Any], Ready]
    admit: Callable[..., Slots]
    advance: Callable[[Prepared, Slots, Any], Slots]
    empty: Callable[[Prepared, int, int], Slots]  # (…, S, T) -> free slots
    before: int  # tokens of the prefix
    limit: int  # tokens of an answer


def programs(
    graph: nnx.GraphDef,
    prefix: tuple[int, ...],
    ends: tuple[int, ...],
    layers: tuple[int, ...],
    options: GenerationOptions,
    *,
    apart: bool,
) -> Programs:
    """Build the generation steps of a model.

    Nothing is compiled yet; each shape is compiled once, at its first call.

    Args:
      graph: of an `lvlm.Model`.
      prefix: ids that begin every prompt.
      ends: ids that end an answer; the first one ends answers that are cut.
      layers: numbers of the hidden states to keep; 0 is the embeddings.
      options: length, temperature and seed of the answers.
      apart: unstack the layers before decoding (see `layers.unstack`).
    """
    limit = options.max_new_tokens
    # Accelerators multiply float32 in fewer bits by default; bfloat16 is not affected.
    exactly = jax.default_matmul_precision("highest")

    def nothing(states: jax.Array) -> tuple[()]:
        return ()

    def choose(logits: jax.Array, row: jax.Array, count: jax.Array) -> jax.Array:
        """Choose the next token [S] of answers with `count` tokens."""
        if options.temperature:

            def draw(row: jax.Array, count: jax.Array, logits: jax.Array) -> jax.Array:
                key = jax.random.fold_in(jax.random.key(options.seed), row)
                scaled = logits / options.temperature
                return jax.random.categorical(jax.random.fold_in(key, count), scaled)

            chosen = jax.vmap(draw)(row, count, logits)
        else:
            chosen = likeliest(logits)
        return jnp.where(count >= limit, ends[0], chosen).astype(jnp.int32)

    @exactly
    def read(given: Prepared, prompts: Prompts, row: jax.Array) -> Ready:
        model = hub.merge(graph, given.params)
        states, cache, _ = lvlm.read(model, prompts, nothing, given.prefix)
        end = lvlm.last(prompts.real)
        logits = model.decoder.logits(lvlm.take(states, end))
        largest = jnp.where(prompts.real[:, None], prompts.positions, -1).max(axis=(1, 2))
        token = choose(logits, row, jnp.zeros_like(row))
        return Ready(cache, token, end + 1, largest + 1)

    def admit(slots: Slots, ready: Ready, source: Any, target: Any, row: Any) -> Slots:
        """Copy prefilled rows into free slots.

        Args:
          slots: the running answers.
          ready: prefilled prompts.
          source: int [S], rows of `ready`.
          target: int [S], their slots; S drops the entry.
          row: int [S], the inputs of the rows.
        """
        length = ready.cache.k.shape[2]
        span = slice(len(prefix), len(prefix) + length)
        k, v = (jnp.take(part, source, axis=1) for part in past(ready.cache, length))
        token = jnp.take(ready.token, source)

        def put(into: jax.Array, values: Any) -> jax.Array:
            return into.at[target].set(values, mode="drop")

        return slots._replace(
            past=Past(
                slots.past.k.at[:, target, :, :, span].set(k, mode="drop"),
                slots.past.v.at[:, target, :, span].set(v, mode="drop"),
            ),
            row=put(slots.row, row),
            done=put(slots.done, False),
            token=put(slots.token, token),
            at=put(slots.at, len(prefix) + jnp.take(ready.length, source)),
            position=put(slots.position, jnp.take(ready.position, source)),
            count=put(slots.count, 1),
            tokens=slots.tokens.at[target, 0].set(token, mode="drop"),
            total=slots.total.at[:, target].set(0.0, mode="drop"),
        )

    @exactly
    def advance(given: Prepared, slots: Slots, wanted: Any) -> Slots:
        """Decode tokens until `wanted` answers, or all, have ended."""
        decoder = hub.merge(graph, given.params).decoder
        blocks = decoder.blocks
        if apart:
            blocks = [nnx.merge(*block) for block in given.layers]

        def step(slots: Slots) -> Slots:
            running = (slots.row >= 0) & ~slots.done
            positions = jnp.broadcast_to(slots.position[:, None], (len(slots.row), 3))
            states, read, kept = decoder.step(
                blocks, slots.token, positions, slots.past, slots.at, lambda states: states[:, 0]
            )
            kept = kept[np.array(layers)]
            ended = running & jnp.isin(slots.token, jnp.array(ends))
            token = choose(decoder.logits(states), slots.row, slots.count)
            alive = running & ~ended
            count = jnp.where(alive, slots.count, slots.tokens.shape[1])  # out of range: dropped
            return slots._replace(
                past=read,
                done=slots.done | ended,
                token=jnp.where(alive, token, slots.token),
                at=slots.at + alive,
                position=slots.position + alive,
                count=slots.count + alive,
                tokens=slots.tokens.at[jnp.arange(len(count)), count].set(token, mode="drop"),
                end=jnp.where(ended[None, :, None], kept, slots.end),
                total=slots.total + jnp.where(running[None, :, None], kept, 0),
            )

        def more(slots: Slots) -> jax.Array:
            running = ((slots.row >= 0) & ~slots.done).any()
            return running & (((slots.row >= 0) & slots.done).sum() < wanted)

        if apart:  # the past is unstacked too, so no layer's part is copied at every token
            layer_numbers = range(decoder.config.num_hidden_layers)
            layer_pasts: Any = [Past(slots.past.k[n], slots.past.v[n]) for n in layer_numbers]
            slots = jax.lax.while_loop(more, step, slots._replace(past=layer_pasts))
            return slots._replace(past=jax.tree.map(lambda *a: jnp.stack(a), *slots.past))
        return jax.lax.while_loop(more, step, slots)

    @exactly
    def prepare(params: Any) -> Prepared:
        decoder = hub.merge(graph, params).decoder
        config = decoder.config
        if prefix:
            ids = jnp.array(prefix, jnp.int32)[None]
            cache = decoder.read_words(ids, jnp.ones(ids.shape, bool), nothing)[1]
        else:
            shape = config.num_hidden_layers, 1, 0, config.num_key_value_heads, config.head_dim
            cache = Cache(*[jnp.zeros(shape, decoder.norm.scale.dtype)] * 2)
        blocks = unstack(decoder.blocks, config.num_hidden_layers) if apart else []
        return Prepared(params, [nnx.split(block) for block in blocks] or None, cache)

    def empty(given: Prepared, count: int, length: int) -> Slots:
        decoder = hub.merge(graph, given.params).decoder
        config, dtype = decoder.config, decoder.norm.scale.dtype

        def every(part: jax.Array) -> jax.Array:
            return jnp.repeat(part, count, axis=1)

        zeros = jnp.zeros(count, jnp.int32)
        states = jnp.zeros((len(layers), count, config.hidden_size), dtype)
        return Slots(
            past=past(Cache(*map(every, given.prefix)), length),
            row=zeros - 1,
            done=zeros > 0,
            token=zeros,
            at=zeros,
            position=zeros,
            count=zeros,
            tokens=jnp.zeros((count, limit + 1), jnp.int32),
            end=states,
            total=states.astype(jnp.float32),
        )

    return Programs(
        prepare=jax.jit(prepare),
        read=jax.jit(read),
        admit=jax.jit(admit, donate_argnums=0),
        advance=jax.jit(advance, donate_argnums=1),
        empty=jax.jit(empty, static_argnums=(1, 2)),
        before=len(prefix),
        limit=limit,
    )


def likeliest(logits: jax.Array) -> jax.Array:
    """Return the argmax of each row, the first of equals.

    Two passes, over blocks and within the best block: on a CPU a reduction to a value vectorises
    and is nine times faster than a reduction to an index, which does not.

    Args:
      logits: [S, V].

    Returns:
      int [S].
    """
    rows, count = logits.shape
    blocks = jnp.pad(logits, ((0, 0), (0, -count % 128)), constant_values=-jnp.inf)
    blocks = blocks.reshape(rows, -1, 128)
    best = jnp.argmax(blocks.max(axis=-1), axis=-1)
    inside = jnp.take_along_axis(blocks, best[:, None, None], axis=1)[:, 0]
    return best * 128 + jnp.argmax(inside, axis=-1)
