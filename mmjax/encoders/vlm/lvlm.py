"""Large vision-language models: what their families share between a prompt and its states.

A model is a module with `look` (images to image tokens) and `decoder`. A prompt is a row of tokens;
where an image stands, its tokens take the places of embeddings.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.encoders.vlm.decoder import Cache, Decoder, Keep


class Prompts(NamedTuple):
    """A batch of prompts, padded on whichever side."""

    ids: Any  # int [B, L]
    seen: Any  # int [B, L] which of the row's image tokens stands there; -1 where a word does
    positions: Any  # int [B, A, L] along the A axes of the decoder's rotary positions
    real: Any  # bool [B, L] false at padding
    images: Any  # whatever `look` reads, arrays [B, ...]


class Model(Protocol):
    """What a family's module offers."""

    decoder: Decoder

    def look(self, images: Any) -> tuple[jax.Array, jax.Array | None]:
        """Image tokens [B, M, D]; and, of some, what is added after the first n layers,
        [n, B, M, D]."""


def read(
    model: Model, prompts: Prompts, keep: Keep, prefix: Cache | None = None
) -> tuple[jax.Array, Cache, Any]:
    """Reads prompts with their images, behind a prefix that all of them share.

    Returns:
      Normed states [B, L, D]; keys and values [N, B, L, K, d]; what `keep` kept of every layer.
    """
    tokens, added = model.look(prompts.images)
    words = model.decoder.embed(prompts.ids)
    x = jnp.where((prompts.seen >= 0)[:, :, None], _at(tokens, prompts.seen), words)

    def deep(number: jax.Array, states: jax.Array) -> jax.Array:
        def add(states: jax.Array) -> jax.Array:
            more = jax.lax.dynamic_index_in_dim(added, number, keepdims=False)
            shown = (prompts.seen >= 0)[:, :, None]
            return states + jnp.where(shown, _at(more, prompts.seen), 0)

        return jax.lax.cond(number < len(added), add, lambda states: states, states)

    return model.decoder.read(
        x,
        prompts.positions,
        prompts.real,
        keep,
        prefix,
        None if added is None else deep,
    )


def last(real: jax.Array) -> jax.Array:
    """Where each row's last token is, int [B]."""
    return real.shape[1] - 1 - jnp.argmax(real[:, ::-1], axis=1)


def take(states: jax.Array, at: jax.Array) -> jax.Array:
    """states: [B, L, D]; at: int [B]; to [B, D]."""
    return jnp.take_along_axis(states, at[:, None, None], axis=1)[:, 0]


def _at(tokens: jax.Array, seen: jax.Array) -> jax.Array:
    """The image token of each place [B, L, D]; any where there is none."""
    return jnp.take_along_axis(tokens, jnp.maximum(seen, 0)[:, :, None], axis=1)


def bucket(count: int) -> int:
    """The least of 16, 20, 24, 28, 32, 40, 48, 56, 64, … that holds `count`.

    Four sizes an octave: at most a quarter is padding, and few programs are compiled.
    """
    if count <= 16:
        return 16
    step = 1 << (int(count - 1).bit_length() - 3)
    return -(-count // step) * step


def pad(array: np.ndarray, size: int, axis: int = 0) -> np.ndarray:
    """Padded with zeros behind along an axis, to `size`."""
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, size - array.shape[axis])
    return np.pad(array, widths)
