"""What a run leaves: results.json, and the metrics of every user."""

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
    """What results.json says of a run, but for its epochs and times."""
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
    """Per-user values for significance tests: {split}/users, {split}/ranked, {split}/metric@k."""
    arrays = {}
    for split, one in found.items():
        arrays |= {f"{split}/users": one.users, f"{split}/ranked": one.ranked}
        arrays |= {f"{split}/{k}": v.astype(np.float32) for k, v in one.per_user.items()}
    made = io.BytesIO()
    np.savez_compressed(made, **arrays)
    files.write_bytes(path, made.getvalue())


def peak_rss_mb() -> float:
    """The most memory this process has held, in MB (1e6 bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)
