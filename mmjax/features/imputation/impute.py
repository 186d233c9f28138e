"""A store with absent rows to a store without: the imputations of arXiv 2408.11767.

  zeros, random, mean            nothing, noise, or the average item
  neigh_mean, feat_prop,
  pers_page_rank, heat           from items bought together (`propagation`)
  ae, gae                        from the item's other modality (`autoencoders`)

None is trained together with a recommender. Observed rows stay as they are, bit for bit. An imputed
row counts as present; an item for which a method has nothing to go by (never bought with an
observed one, or without the other modality) keeps zeros and stays absent.
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
class Summary:
    """What became of an imputation: numbers of rows, and the options that were used."""

    store: str
    items: int
    width: int
    masked: int
    imputed: int
    absent: int
    options: dict[str, Any]


def zeros(gaps: Gaps) -> Filled:
    """Zeros that count as features."""
    return gaps.features, np.ones_like(gaps.present)


def random(gaps: Gaps, *, seed: int = 0) -> Filled:
    """Uniform on [0, 1) in every dimension."""
    rows = gaps.features.copy()
    absent = ~gaps.present
    generator = np.random.default_rng(seed)
    rows[absent] = generator.random((absent.sum(), rows.shape[1]), np.float32)
    return rows, np.ones_like(gaps.present)


def mean(gaps: Gaps) -> Filled:
    """The mean over the observed rows."""
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
    """All options of a method: those given that are not None, and the defaults of the others.

    Raises:
      InputError: no such method, or an option it does not have.
    """
    if method not in METHODS:
        raise InputError(f"there is no method {method!r}; there are {', '.join(METHODS)}")
    parameters = list(inspect.signature(METHODS[method]).parameters.values())[1:]
    known = {parameter.name: parameter.default for parameter in parameters}
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise InputError(f"method {method} has no option {name!r}; {has}")
    return known | given


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
) -> Summary:
    """Copies the store `features` to `out` with its absent rows filled.

    Only the train split is looked at. A store without absent rows is copied, 0 imputed. The new
    manifest keeps what the old one says and adds `imputed`: method, options, numbers of rows, and
    the hashes of what went in.

    Args:
      options: of the method; None means its default.
      other: store of the other modality, for `ae` and `gae`.
      mask_rate: share of the present rows to hide first, drawn with `mask_seed`.

    Raises:
      InputError: anything the user can mend; nothing of the new store is left then.
    """
    options = resolve(method, options or {})
    if _same(features, out) or (other is not None and _same(other, out)):
        raise InputError(f"{out} is the store to read from; choose another --out")
    refuse_existing(out, overwrite=overwrite)
    mine = {"item_hash": dataset.item_hash(), "n_items": dataset.n_items}
    source = open_store(features, **mine)
    beside = open_store(other, **mine) if other is not None else None
    observed, there = source.read()
    if not there.any():
        raise InputError(f"{features} holds no present row to impute from; extract it again")
    present = mask(there, mask_rate, mask_seed)
    rows, filled = observed, present
    if not present.all():
        known = np.where(present[:, None], observed, 0).astype(np.float32)
        more = beside.read(dtype=np.float32) if beside is not None else ()
        values, reached = METHODS[method](Gaps(dataset, known, present, *more), **options)
        with np.errstate(over="ignore"):  # what overflows the dtype is reported by the store
            rows = np.where(present[:, None], observed, values.astype(source.dtype))
        filled = present | reached
    summary = Summary(
        str(out),
        *source.shape,
        masked=int(there.sum() - present.sum()),
        imputed=int(filled.sum() - present.sum()),
        absent=int((~filled).sum()),
        options=options,
    )
    about = {key: source.manifest[key] for key in ABOUT} | source.manifest["settings"]
    about["imputed"] = {
        "method": method,
        **options,
        "rows": summary.imputed,
        "masked": summary.masked,
        "mask_rate": mask_rate,
        "mask_seed": mask_seed,
        "features_hash": source.manifest["content_hash"],
        "other_hash": beside.manifest["content_hash"] if beside is not None else "",
        "data_hash": dataset.interaction_hash(),
    }
    write_array(
        out,
        rows,
        item_ids=dataset.item_ids,
        present=filled,
        overwrite=overwrite,
        **about,
    )
    return summary


def _same(one: str | Path, two: str | Path) -> bool:
    """Whether two names are one store; URLs are compared as they are written."""
    if "://" in str(one) or "://" in str(two):
        return str(one).rstrip("/") == str(two).rstrip("/")
    return Path(one).expanduser().resolve() == Path(two).expanduser().resolve()
