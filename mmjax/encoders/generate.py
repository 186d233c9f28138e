"""Answers: a token at a time from a cache of keys and values, a finished row's place taken at once.

S answers run side by side. Whole batches of prompts are read ahead; their rows wait, with their
keys and values, until an answer ends. The embedding of arXiv 2508.04571 is the state of the token
that ends the answer, so that token is read as well.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.encoders import hub, lvlm
from mmjax.encoders.decoder import Cache
from mmjax.encoders.layers import unstack
from mmjax.encoders.lvlm import Prompts


@dataclass(frozen=True)
class Options:
    """How answers are made."""

    max_new_tokens: int = 128  # a longer answer is ended there
    temperature: float = 0.0  # 0 is greedy; else each row draws by its own seed
    seed: int = 0


class Slots(NamedTuple):
    """S answers that run side by side, of M tokens at most; Q layers' states are kept."""

    cache: Cache  # [N, S, T, K, d]
    row: Any  # int [S] which input it answers; -1 where the place is free
    done: Any  # bool [S]
    token: Any  # int [S] to be read next
    at: Any  # int [S] where in the cache it belongs
    position: Any  # int [S] along every axis of its rotary position
    count: Any  # int [S] tokens of the answer so far
    tokens: Any  # int [S, M + 1] the answer, its end token included
    end: Any  # [Q, S, D] states of the end token
    total: Any  # float32 [Q, S, D] sum of the answer's states


class Ready(NamedTuple):
    """Prompts that were read, and the first token of their answers."""

    cache: Cache  # [N, B, L, K, d] behind the prefix
    token: Any  # int [B]
    length: Any  # int [B] tokens of the prompt behind the prefix
    position: Any  # int [B] where the answer begins


class Programs(NamedTuple):
    """The compiled steps and two numbers that they were made for."""

    prefix: Callable[[Any], Any]  # params -> what the shared prefix left, or None
    read: Callable[[Any, Any, Prompts, Any], Ready]
    admit: Callable[..., Slots]
    advance: Callable[[Any, Slots, Any], Slots]
    empty: Callable[[Any, int, int, Any], Slots]  # (params, S, T, prefix) -> no answer running
    before: int  # tokens of the prefix
    limit: int  # tokens of an answer


def programs(
    graph: nnx.GraphDef,
    prefix: tuple[int, ...],
    ends: tuple[int, ...],
    layers: tuple[int, ...],
    options: Options,
    *,
    apart: bool,
) -> Programs:
    """Compiles nothing yet; every shape that comes is compiled once.

    Args:
      graph: of an `lvlm.Model`.
      prefix: ids that begin every prompt.
      ends: ids that end an answer; the first is put where the longest answers are cut.
      layers: whose states are kept, from 0, the embeddings.
      apart: take the stacked layers apart before decoding (see `layers.unstack`).
    """
    limit = options.max_new_tokens
    # Accelerators multiply float32 in fewer bits unless asked; of bfloat16 it changes nothing.
    exactly = jax.default_matmul_precision("highest")

    def choose(logits: jax.Array, row: jax.Array, count: jax.Array) -> jax.Array:
        """The next token [S] of answers that have `count` so far."""
        if options.temperature:

            def draw(row: jax.Array, count: jax.Array, logits: jax.Array) -> jax.Array:
                key = jax.random.fold_in(jax.random.key(options.seed), row)
                scaled = logits / options.temperature
                return jax.random.categorical(jax.random.fold_in(key, count), scaled)

            chosen = jax.vmap(draw)(row, count, logits)
        else:
            chosen = jnp.argmax(logits, axis=-1)
        return jnp.where(count >= limit, ends[0], chosen).astype(jnp.int32)

    @exactly
    def read(params: Any, before: Any, prompts: Prompts, row: jax.Array) -> Ready:
        model = hub.merge(graph, params)
        nothing = lambda states: ()  # noqa: E731
        states, cache, _ = lvlm.read(model, prompts, nothing, before)
        end = lvlm.last(prompts.real)
        logits = model.decoder.logits(lvlm.take(states, end))
        largest = jnp.where(prompts.real[:, None], prompts.positions, -1).max(axis=(1, 2))
        token = choose(logits, row, jnp.zeros_like(row))
        return Ready(cache, token, end + 1, largest + 1)

    def admit(slots: Slots, ready: Ready, source: Any, target: Any, row: Any) -> Slots:
        """Puts rows `source` [B] of what was read into places `target` [B]; S is nowhere."""
        length = ready.cache.k.shape[2]
        here = slice(len(prefix), len(prefix) + length)
        token = jnp.take(ready.token, source)

        def put(into: jax.Array, values: Any) -> jax.Array:
            return into.at[target].set(values, mode="drop")

        return slots._replace(
            cache=Cache(
                *(
                    into.at[:, target, here].set(jnp.take(new, source, axis=1), mode="drop")
                    for into, new in zip(slots.cache, ready.cache, strict=True)
                )
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
    def advance(params: Any, slots: Slots, wanted: Any) -> Slots:
        """Reads a token of every answer until `wanted` have ended, or all."""
        model = hub.merge(graph, params)
        decoder = model.decoder
        blocks = decoder.blocks
        if apart:
            blocks = unstack(blocks, decoder.config.num_hidden_layers)

        def step(slots: Slots) -> Slots:
            running = (slots.row >= 0) & ~slots.done
            where = jnp.broadcast_to(slots.position[:, None], (len(slots.row), 3))
            states, cache, kept = decoder.step(
                blocks, slots.token, where, slots.cache, slots.at, lambda states: states[:, 0]
            )
            kept = kept[np.array(layers)]
            ended = running & jnp.isin(slots.token, jnp.array(ends))
            token = choose(decoder.logits(states), slots.row, slots.count)
            further = running & ~ended
            count = jnp.where(further, slots.count, slots.tokens.shape[1])  # out of range: dropped
            return slots._replace(
                cache=cache,
                done=slots.done | ended,
                token=jnp.where(further, token, slots.token),
                at=slots.at + further,
                position=slots.position + further,
                count=slots.count + further,
                tokens=slots.tokens.at[jnp.arange(len(count)), count].set(token, mode="drop"),
                end=jnp.where(ended[None, :, None], kept, slots.end),
                total=slots.total + jnp.where(running[None, :, None], kept, 0),
            )

        def more(slots: Slots) -> jax.Array:
            running = ((slots.row >= 0) & ~slots.done).any()
            return running & (((slots.row >= 0) & slots.done).sum() < wanted)

        if apart:  # nor is a layer's cache cut out of the stack at every token
            layers_of = range(decoder.config.num_hidden_layers)
            parts = [Cache(slots.cache.k[n], slots.cache.v[n]) for n in layers_of]
            slots = jax.lax.while_loop(more, step, slots._replace(cache=parts))
            return slots._replace(cache=jax.tree.map(lambda *a: jnp.stack(a), *slots.cache))
        return jax.lax.while_loop(more, step, slots)

    @exactly
    def shared(params: Any) -> Cache | None:
        if not prefix:
            return None
        model = hub.merge(graph, params)
        ids = jnp.array(prefix, jnp.int32)[None]
        return model.decoder.read_words(ids, jnp.ones(ids.shape, bool), lambda states: ())[1]

    def empty(params: Any, count: int, length: int, before: Cache | None) -> Slots:
        decoder = hub.merge(graph, params).decoder
        config, dtype = decoder.config, decoder.norm.scale.dtype
        heads = config.num_key_value_heads, config.head_dim
        shape = (config.num_hidden_layers, count, length, *heads)
        cache = Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
        if before is not None:
            here = slice(0, len(prefix))
            cache = Cache(*(a.at[:, :, here].set(b) for a, b in zip(cache, before, strict=True)))
        zeros = jnp.zeros(count, jnp.int32)
        states = jnp.zeros((len(layers), count, config.hidden_size), dtype)
        return Slots(
            cache=cache,
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
        prefix=jax.jit(shared),
        read=jax.jit(read),
        admit=jax.jit(admit, donate_argnums=0),
        advance=jax.jit(advance, donate_argnums=1),
        empty=jax.jit(empty, static_argnums=(1, 2)),
        before=len(prefix),
        limit=limit,
    )
