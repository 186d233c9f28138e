"""Build results.json and save the metrics of every user."""

import io
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from mmjax import __version__, store
from mmjax.core import files
from mmjax.data import dataset as datasets
from mmjax.evaluation import ranking
from mmjax.training import metric_logger, settings

PROVENANCE = ("encoder", "revision", "layer", "pooling", "shape", "content_hash")


def record(
    config: settings.Config,
    data: datasets.Dataset,
    stores: Mapping[str, store.Store],
    grid: Mesh,
    valid: ranking.Ranking,
    test: ranking.Ranking,
) -> dict[str, Any]:
    """Return the contents of results.json, without epochs and times."""
    return {
        "dataset": data.name,
        "recommender": config["recommender"],
        "config": settings.plain(config),
        "seed": config["seed"],
        "valid": valid.rounded(),
        "test": test.rounded(),
        "memory": {"peak_rss_mb": peak_rss_mb()},
        "versions": metric_logger.versions("jax", "jaxlib", "flax", "optax", "numpy")
        | {"mmjax": __version__},
        "device": grid.devices.flat[0].device_kind,
        "data": {"item_hash": data.item_hash(), "interaction_hash": data.interaction_hash()},
        "features": {
            name: {key: opened.manifest.get(key) for key in PROVENANCE}
            for name, opened in stores.items()
        },
    }


def save_users(path: Path, found: dict[str, ranking.Ranking]) -> None:
    """Save the metrics of each user for significance tests.

    The keys are {split}/users, {split}/ranked and {split}/metric@k.
    """
    arrays: dict[str, Any] = {}
    for split, split_ranking in found.items():
        arrays |= {f"{split}/users": split_ranking.users, f"{split}/ranked": split_ranking.ranked}
        arrays |= {
            f"{split}/{name}": values.astype(np.float32)
            for name, values in split_ranking.per_user.items()
        }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    files.write_bytes(path, buffer.getvalue())


def peak_rss_mb() -> float:
    """Return the peak memory of this process, in MB (1e6 bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)
