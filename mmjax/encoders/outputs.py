"""Select a model's outputs by name and pool them to vectors.

A model returns a dict of all its outputs under Hugging Face's names: vectors [B, F]
(`pooler_output`, `image_embeds`), token states [B, L, D] (`last_hidden_state`,
`hidden_states.0` …) and feature maps [B, H, W, C]. The compiled program returns only the selected
outputs, so XLA does not compute the others.

A layer is given as NAME, as NAME:POOLING, or by a number: `3` and `-2` index the hidden states.
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.core.errors import InputError
from mmjax.encoders.core import Batches, Tower

POOLINGS = ("mean", "cls", "max", "flatten")
Outputs = dict[str, jax.Array]
# (module, *arrays [B, ...]) -> outputs, and a token mask [B, L] where lengths differ, else None
Forward = Callable[..., tuple[Outputs, jax.Array | None]]


def tower(
    modality: str,
    graph: nnx.GraphDef,
    params: Any,
    forward: Forward,
    *,
    batches: Batches,
    example: tuple[Any, ...],
    layers: Sequence[str | int] = (),
    default: str,
    pooling: str = "mean",
    about: dict[str, Any],
) -> Tower:
    """Build the Tower of a module for the given layers.

    Args:
      modality: kind of input, as in `Tower`.
      graph: from `hub.load_module`.
      params: from `hub.load_module`.
      forward: runs the module.
      batches: turns inputs into arrays.
      example: arrays, or their `jax.ShapeDtypeStruct`s, of a batch of one.
      layers: NAME, NAME:POOLING or number; `default` if empty.
      default: the layer used if `layers` is empty.
      pooling: for token states and feature maps given without a pooling.
      about: entries for the manifest.

    Raises:
      InputError: a layer is unknown, given twice, or does not allow its pooling.
    """

    def run(params: Any, *arrays: jax.Array) -> tuple[Outputs, jax.Array | None]:
        return forward(nnx.merge(graph, nnx.State(params)), *arrays)

    shapes, mask = jax.eval_shape(run, params, *example)
    chosen = [resolve(layer, shapes, pooling, mask is not None) for layer in layers or (default,)]
    if len(set(chosen)) < len(chosen):
        raise InputError(f"a layer is asked for twice in {', '.join(map(str, layers))}")
    exact = all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))

    @jax.jit
    def encode(params: Any, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        # Accelerators multiply float32 in fewer bits by default; parity is worth the time.
        with jax.default_matmul_precision("highest" if exact else "default"):
            outputs, mask = run(params, *arrays)
            return tuple(pool(outputs[name], mask, how) for name, how in chosen)

    widths = [
        jax.eval_shape(lambda x, m, how=how: pool(x, m, how), shapes[name], mask).shape[1]
        for name, how in chosen
    ]
    names = [name if how is None else f"{name}:{how}" for name, how in chosen]
    return Tower(
        modality=modality,
        layers=dict(zip(names, widths, strict=True)),
        params=params,
        batches=batches,
        encode=encode,
        about=about,
    )


def resolve(
    layer: str | int, shapes: Mapping[str, Any], pooling: str, ragged: bool
) -> tuple[str, str | None]:
    """Return the output name and pooling of a layer.

    The pooling is None for an output that is already a vector.

    Args:
      layer: NAME, NAME:POOLING or the number of a hidden state.
      shapes: output name -> array or shape struct.
      pooling: used if the layer names none.
      ragged: whether lengths differ between inputs.

    Raises:
      InputError: no such output (the message lists the existing ones), or no such pooling for it.
    """
    name, _, how = str(layer).partition(":")
    hidden = [key for key in shapes if re.fullmatch(r"hidden_states\.\d+", key)]
    if re.fullmatch(r"-?\d+", name):
        number = int(name)
        if not -len(hidden) <= number < len(hidden):
            raise InputError(
                f"layer {number}: there are {len(hidden)} hidden states, the first one's input "
                "included"
            )
        name = f"hidden_states.{number % len(hidden)}"
    if name not in shapes:
        close = difflib.get_close_matches(name, shapes, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise InputError(f"there is no layer {name!r}; {hint}there are {', '.join(shapes)}")
    if len(shapes[name].shape) == 2:
        if how:
            raise InputError(f"layer {name} is a vector already and cannot be pooled by {how}")
        return name, None
    how = how or pooling
    if how not in POOLINGS:
        raise InputError(f"pooling {how!r} is none of {', '.join(POOLINGS)}")
    if how == "cls" and len(shapes[name].shape) == 4:
        raise InputError(f"layer {name} is a feature map, which has no first token to take")
    if how == "flatten" and ragged:
        raise InputError(f"layer {name} is as long as its input; pool it by mean, cls or max")
    return name, how


def pool(values: jax.Array, mask: jax.Array | np.ndarray | None, how: str | None) -> jax.Array:
    """Pool token states or feature maps to vectors.

    "mean" and "max" reduce over positions, "cls" takes the first token, "flatten" keeps all values.
    "flatten" puts the channels of a feature map first, in the memory order of PyTorch's [C, H, W].

    Args:
      values: [B, L, D] or [B, H, W, C].
      mask: [B, L], true at tokens; ignored where its length is not that of the values.
      how: one of `POOLINGS`; None returns the values unchanged.

    Returns:
      [B, F].
    """
    if how is None:
        return values
    if how == "flatten":
        if values.ndim == 4:
            values = values.transpose(0, 3, 1, 2)
        return values.reshape(len(values), -1)
    values = values.reshape(len(values), -1, values.shape[-1])
    if how == "cls":
        return values[:, 0]
    if mask is None or mask.shape[1] != values.shape[1]:
        mask = jnp.ones(values.shape[:2], bool)
    valid = mask[:, :, None].astype(bool)
    if how == "max":
        return jnp.where(valid, values, jnp.finfo(values.dtype).min).max(axis=1)
    total = jnp.where(valid, values, 0).sum(axis=1, dtype=jnp.float32)
    return (total / jnp.maximum(valid.sum(axis=1), 1)).astype(values.dtype)


def normalize_rows(vectors: jax.Array) -> jax.Array:
    """Scale rows to unit length; rows of zeros stay zero."""
    norms = jnp.linalg.norm(vectors.astype(jnp.float32), axis=-1, keepdims=True)
    return (vectors / jnp.maximum(norms, 1e-12)).astype(vectors.dtype)


def states(hidden: Sequence[jax.Array]) -> Outputs:
    """Return hidden states by name; number 0 is the embeddings."""
    return {f"hidden_states.{n}": state for n, state in enumerate(hidden)}


def integers(*shape: int) -> jax.ShapeDtypeStruct:
    """Return the shape struct of int32 token ids or masks."""
    return jax.ShapeDtypeStruct(shape, np.int32)
