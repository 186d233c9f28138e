"""What text towers share: batches of tokens in a few shapes, pooling, sentence-transformers."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.encoders.core import Batch, pad_to
from mmjax.errors import InputError

POOLINGS = ("mean", "cls", "max", "pooler")
# Twice a length costs more than twice the time, a program about a second once: a middle way.
BUCKETS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)


class Recipe(NamedTuple):
    """How a checkpoint makes one vector of a text."""

    pooling: str
    normalize: bool
    max_length: int | None


def read_recipe(folder: Path, pooling: str | None = None) -> Recipe:
    """Pooling, normalisation and length as sentence-transformers keeps them beside a model.

    Without those files it is the mean, not normalised; `pooling` overrules what they say.

    Raises:
      InputError: a pooling nobody knows, or a module that mmjax does not have.
    """
    if pooling is not None and pooling not in POOLINGS:
        raise InputError(f"pooling {pooling!r} is none of {', '.join(POOLINGS)}")
    modules = _read_list(folder / "modules.json")
    if modules is None:
        return Recipe(pooling or "mean", False, None)
    own, normalize = "mean", False
    for module in modules:
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            own = _pooling_of(folder / module["path"] / "config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise InputError(f"{folder}/modules.json has a module {kind!r}, which mmjax lacks")
    length = None
    if (folder / "sentence_bert_config.json").exists():
        about = json.loads((folder / "sentence_bert_config.json").read_text())
        length = about.get("max_seq_length")
    return Recipe(pooling or own, normalize, length)


def pool(states: jax.Array, mask: jax.Array, how: str) -> jax.Array:
    """[B, L, D] to [B, D]: mean or maximum over the tokens of `mask` [B, L], or the first."""
    if how == "cls":
        return states[:, 0]
    there = mask[:, :, None].astype(bool)
    if how == "max":
        return jnp.where(there, states, jnp.finfo(states.dtype).min).max(axis=1)
    total = jnp.where(there, states, 0).sum(axis=1, dtype=jnp.float32)
    return (total / jnp.maximum(there.sum(axis=1), 1)).astype(states.dtype)


def normalize_rows(vectors: jax.Array) -> jax.Array:
    """Rows of unit length; a row of zeros stays one."""
    norms = jnp.linalg.norm(vectors.astype(jnp.float32), axis=-1, keepdims=True)
    return (vectors / jnp.maximum(norms, 1e-12)).astype(vectors.dtype)


def token_batches(
    tokenizer: Any, texts: Sequence[str], size: int, max_length: int
) -> Iterator[Batch]:
    """Batches of ids [B, L] and mask [B, L], texts of like length together.

    L is the first of `BUCKETS` that holds the batch's longest text; longer texts are cut at
    `max_length` tokens. So there are as many programs as buckets in use, whatever the texts.
    """
    encoded = tokenizer(
        list(texts), truncation=True, max_length=max_length, return_attention_mask=False
    )["input_ids"]
    lengths = np.array([len(ids) for ids in encoded])
    order = np.argsort(-lengths, kind="stable")  # the longest first: memory peaks at once
    buckets = [bucket for bucket in BUCKETS if bucket < max_length] + [max_length]
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        length = next(bucket for bucket in buckets if bucket >= lengths[rows].max())
        ids = np.full((len(rows), length), tokenizer.pad_token_id or 0, np.int32)
        for line, row in zip(ids, rows, strict=True):
            line[: lengths[row]] = encoded[row]
        mask = np.arange(length) < lengths[rows, None]
        yield Batch(rows, (pad_to(ids, size), pad_to(mask, size)))


def _pooling_of(path: Path) -> str:
    try:
        about = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if "pooling_mode" in about:
        chosen = [about["pooling_mode"]]
    else:
        chosen = [key for key, on in about.items() if key.startswith("pooling_mode_") and on]
        names = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max"}
        chosen = [names.get(key.removeprefix("pooling_mode_"), key) for key in chosen]
    if len(chosen) != 1 or chosen[0] not in POOLINGS:
        raise InputError(f"{path} pools by {chosen}; mmjax has {', '.join(POOLINGS)}")
    return chosen[0]


def _read_list(path: Path) -> list[dict[str, Any]] | None:
    if not path.exists():
        return None
    try:
        modules = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    return modules
