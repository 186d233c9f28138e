"""Imputation of a store's absent rows (methods of arXiv 2408.11767).

  zeros, random, mean            nothing, noise, or the average item
  neigh_mean, feat_prop,
  pers_page_rank, heat           from items bought together (`propagation`)
  ae, gae                        from the item's other modality (`autoencoders`)

No method is trained jointly with a recommender. Observed rows stay as they are, bit for bit. An
imputed row counts as present. An item without a source for a method (never bought with an observed
one, or without the other modality) keeps zeros and stays absent.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.core.errors import InputError
from mmjax.data.dataset import Dataset
from mmjax.features.imputation.autoencoders import ae, gae
from mmjax.features.imputation.missing import Gaps, mask
from mmjax.features.imputation.propagation import (
    Filled,
    feat_prop,
    heat,
    neigh_mean,
    pers_page_rank,
)
from mmjax.store.create import ABOUT, refuse_existing, write_array
from mmjax.store.read import open_store


@dataclass
class ImputationSummary:
    """Result of an imputation: row counts and the options used."""

    store: str
    items: int
    width: int
    masked: int
    imputed: int
    absent: int
    options: dict[str, Any]


def zeros(gaps: Gaps) -> Filled:
    """Return zeros that count as features."""
    return gaps.features, np.ones_like(gaps.present)


def random(gaps: Gaps, *, seed: int = 0) -> Filled:
    """Draw uniform values in [0, 1) for every dimension."""
    rows = gaps.features.copy()
    absent = ~gaps.present
    generator = np.random.default_rng(seed)
    rows[absent] = generator.random((absent.sum(), rows.shape[1]), np.float32)
    return rows, np.ones_like(gaps.present)


def mean(gaps: Gaps) -> Filled:
    """Return the mean over the observed rows."""
    average = gaps.features[gaps.present].mean(0, dtype=np.float64)
    return np.broadcast_to(average, gaps.features.shape), np.ones_like(gaps.present)


METHODS: dict[str, Callable[..., Filled]] = {
    method.__name__: method
    for method in (
        zeros,
        random,
        mean,
        neigh_mean,
        feat_prop,
        pers_page_rank,
        heat,
        ae,
        gae,
    )
}


def resolve(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of a method, defaults included.

    Options that are None take their defaults.

    Raises:
      InputError: no such method, or an option it does not have.
    """
    if method not in METHODS:
        raise InputError(f"there is no method {method!r}; there are {', '.join(METHODS)}")
    parameters = list(inspect.signature(METHODS[method]).parameters.values())[1:]
    known = {parameter.name: parameter.default for parameter in parameters}
    chosen = {name: value for name, value in options.items() if value is not None}
    for name in chosen:
        if name not in known:
            choices = f"it has {', '.join(known)}" if known else "it has none"
            raise InputError(f"method {method} has no option {name!r}; {choices}")
    return known | chosen


def impute(
    dataset: Dataset,
    features: str | Path,
    out: str | Path,
    *,
    method: str,
    options: Mapping[str, Any] | None = None,
    other: str | Path | None = None,
    mask_rate: float = 0.0,
    mask_seed: int = 0,
    overwrite: bool = False,
) -> ImputationSummary:
    """Copy the store `features` to `out` with absent rows filled.

    Only the train split is used. A store without absent rows is copied, with 0 imputed. The new
    manifest keeps the content of the old one and adds `imputed`: method, options, numbers of rows,
    and the hashes of the sources.

    Args:
      options: of the method; None means its default.
      other: store of the other modality, for `ae` and `gae`.
      mask_rate: share of the present rows to hide first, drawn with `mask_seed`.

    Raises:
      InputError: anything that the user can mend; no part of the new store is left then.
    """
    options = resolve(method, options or {})
    if _same(features, out) or (other is not None and _same(other, out)):
        raise InputError(f"{out} is the store to read from; choose another --out")
    refuse_existing(out, overwrite=overwrite)
    catalogue: dict[str, Any] = {"item_hash": dataset.item_hash(), "n_items": dataset.n_items}
    source = open_store(features, **catalogue)
    other_store = open_store(other, **catalogue) if other is not None else None
    observed, source_present = source.read()
    if not source_present.any():
        raise InputError(f"{features} holds no present row to impute from; extract it again")
    present = mask(source_present, mask_rate, mask_seed)
    rows, filled = observed, present
    if not present.all():
        known = np.where(present[:, None], observed, 0).astype(np.float32)
        other_arrays = other_store.read(dtype=np.float32) if other_store is not None else ()
        values, reached = METHODS[method](Gaps(dataset, known, present, *other_arrays), **options)
        with np.errstate(over="ignore"):  # what overflows the dtype is reported by the store
            rows = np.where(present[:, None], observed, values.astype(source.dtype))
        filled = present | reached
    summary = ImputationSummary(
        str(out),
        *source.shape,
        masked=int(source_present.sum() - present.sum()),
        imputed=int(filled.sum() - present.sum()),
        absent=int((~filled).sum()),
        options=options,
    )
    metadata = {key: source.manifest[key] for key in ABOUT} | source.manifest["settings"]
    metadata["imputed"] = {
        "method": method,
        **options,
        "rows": summary.imputed,
        "masked": summary.masked,
        "mask_rate": mask_rate,
        "mask_seed": mask_seed,
        "features_hash": source.manifest["content_hash"],
        "other_hash": other_store.manifest["content_hash"] if other_store is not None else "",
        "data_hash": dataset.interaction_hash(),
    }
    write_array(
        out,
        rows,
        item_ids=dataset.item_ids,
        present=filled,
        overwrite=overwrite,
        **metadata,
    )
    return summary


def _same(one: str | Path, two: str | Path) -> bool:
    """Check if two names are of one store.

    URLs are compared as they are written.
    """
    if "://" in str(one) or "://" in str(two):
        return str(one).rstrip("/") == str(two).rstrip("/")
    return Path(one).expanduser().resolve() == Path(two).expanduser().resolve()
