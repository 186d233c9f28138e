"""Controls: random features in place of the features of a store.

They test whether a recommender gains from content or only from capacity.

gaussian       i.i.d. N(0, 1) of the same shape (arXiv 2508.04571)
multivariate   N(mean, covariance) of the present rows (the same paper): the features' distribution
               without any item's content
shuffle        the features themselves, each assigned to another item
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mmjax.core.errors import InputError
from mmjax.store.create import ABOUT, write_array
from mmjax.store.read import Store, open_store


def gaussian(features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw i.i.d. standard normal values [n, F]."""
    return rng.standard_normal(features.shape)


def multivariate(features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw rows [n, F] from a normal distribution fitted to the features.

    The covariance is the unbiased one and may be singular, as it is where n <= F.
    """
    rows = features.astype(np.float64)
    mean = rows.mean(0)
    if len(rows) < 2:
        return np.repeat(mean[None], len(rows), axis=0)
    covariance = np.atleast_2d(np.cov(rows, rowvar=False))  # [F, F]
    scale, axes = np.linalg.eigh(covariance)
    root = axes * np.sqrt(np.maximum(scale, 0))[None]  # root root^T = covariance
    return mean[None] + rng.standard_normal(rows.shape) @ root.T


def shuffle(features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the rows [n, F] in a random order."""
    return features[rng.permutation(len(features))]


CONTROLS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    control.__name__: control for control in (gaussian, multivariate, shuffle)
}


def control(
    features: str | Path, out: str | Path, kind: str, *, seed: int = 0, overwrite: bool = False
) -> Store:
    """Write a control of a store's features as the store `out`.

    Absent rows stay absent.

    Raises:
      InputError: an unknown kind, no present row, or an error of the stores.
    """
    if kind not in CONTROLS:
        raise InputError(f"there is no control {kind!r}; there are {', '.join(CONTROLS)}")
    source = open_store(features)
    rows, present = source.read(dtype=np.float32)
    if not present.any():
        raise InputError(f"{features} holds no present row; extract it again")
    noise = np.zeros_like(rows)
    noise[present] = CONTROLS[kind](rows[present], np.random.default_rng(seed))
    metadata = {key: source.manifest[key] for key in ABOUT} | source.manifest["settings"]
    metadata["control"] = {
        "kind": kind,
        "seed": seed,
        "features_hash": source.manifest["content_hash"],
    }
    write_array(
        out,
        noise,
        item_ids=source.item_ids(),
        present=present,
        dtype=source.dtype,
        overwrite=overwrite,
        **metadata,
    )
    return open_store(out)
