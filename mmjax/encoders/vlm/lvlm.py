"""Prefill of large vision-language models, common to all model families.

A model is a module with `look` (images to image tokens) and `decoder`. A prompt is a row of tokens.
At an image, the image tokens replace the word embeddings.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.encoders.vlm.decoder import Cache, Decoder, Keep


class Prompts(NamedTuple):
    """Batch of prompts, padded on the left or right."""

    ids: Any  # int [B, L]
    seen: Any  # int [B, L] index of the row's image token at this position; -1 at words
    positions: Any  # int [B, A, L] along the A axes of the decoder's rotary positions
    real: Any  # bool [B, L] false at padding
    images: Any  # input of `look`, arrays [B, ...]


class Model(Protocol):
    """Interface of a vision-language model."""

    decoder: Decoder

    def look(self, images: Any) -> tuple[jax.Array, jax.Array | None]:
        """Encode images to image tokens.

        Returns:
          Image tokens [B, M, D]; for some models also the states [n, B, M, D] that are added after
          the first n decoder layers, else None.
        """


def read(
    model: Model, prompts: Prompts, keep: Keep, prefix: Cache | None = None
) -> tuple[jax.Array, Cache, Any]:
    """Prefill prompts and their images after a shared prefix.

    Args:
      model: the vision-language model.
      prompts: a batch of prompts.
      keep: as in `Decoder.read`.
      prefix: keys and values of the prefix, of a batch of 1.

    Returns:
      Normed states [B, L, D]; keys and values [N, B, L, K, d]; the output of `keep` for each layer.
    """
    tokens, added = model.look(prompts.images)
    words = model.decoder.embed(prompts.ids)
    x = jnp.where((prompts.seen >= 0)[:, :, None], _at(tokens, prompts.seen), words)

    def deep(number: jax.Array, states: jax.Array) -> jax.Array:
        assert added is not None

        def add(states: jax.Array) -> jax.Array:
            layer_tokens = jax.lax.dynamic_index_in_dim(added, number, keepdims=False)
            is_image = (prompts.seen >= 0)[:, :, None]
            return states + jnp.where(is_image, _at(layer_tokens, prompts.seen), 0)

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
    """Return the index of each row's last token, int [B]."""
    return real.shape[1] - 1 - jnp.argmax(real[:, ::-1], axis=1)


def take(states: jax.Array, at: jax.Array) -> jax.Array:
    """Take one state a row.

    Args:
      states: [B, L, D].
      at: int [B], index of the state in each row.

    Returns:
      [B, D].
    """
    return jnp.take_along_axis(states, at[:, None, None], axis=1)[:, 0]


def _at(tokens: jax.Array, seen: jax.Array) -> jax.Array:
    """Return the image token of each position, [B, L, D].

    Positions without one (`seen` is -1) get the first image token.
    """
    return jnp.take_along_axis(tokens, jnp.maximum(seen, 0)[:, :, None], axis=1)


def bucket(count: int) -> int:
    """Round a length up to the next bucket size.

    The sizes are 16, 20, 24, 28, 32, 40, 48, 56, 64, …: four an octave. So above 16 padding adds
    less than a quarter, and few programs are compiled.
    """
    if count <= 16:
        return 16
    step = 1 << (int(count - 1).bit_length() - 3)
    return -(-count // step) * step


def pad(array: np.ndarray, size: int, axis: int = 0) -> np.ndarray:
    """Pad an axis with zeros at its end to `size`."""
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, size - array.shape[axis])
    return np.pad(array, widths)
