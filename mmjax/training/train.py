"""One run from a config to results.json: read, build, train, choose on valid, read test once."""

import io
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mmjax import __version__, store
from mmjax.core import files, storage
from mmjax.core.errors import InputError
from mmjax.data import dataset as datasets
from mmjax.evaluation import ranking
from mmjax.parallel import compile_cache, distributed
from mmjax.training import evaluator, experiment, fit, metric_logger, settings
from mmjax.training.checkpoint import Checkpoints

Config = settings.Config
PROVENANCE = ("encoder", "revision", "layer", "pooling", "shape", "content_hash")


def run(config: Config, workdir: str | Path) -> dict[str, Any]:
    """Trains and evaluates one configuration; run again after a kill, it goes on where it was.

    Writes config.json, metrics.jsonl, tensorboard/, checkpoints/, per_user.npz and results.json.

    Returns:
      What results.json holds.

    Raises:
      InputError: a fault in the config, the dataset or the features; a loss or a score that is not
        finite; a workdir that belongs to another config.
    """
    with compile_cache.Count() as count:
        return _run(config, storage.path(workdir), count)


def _run(config: Config, workdir: Path, count: compile_cache.Count) -> dict[str, Any]:
    begin = time.perf_counter()
    settings.check(config)
    data = datasets.load(settings.required(config, "dataset"))
    stores = experiment.features(config, data)
    identity = settings.identity(config, data, stores)
    distributed.agree(settings.flatten(identity) | {"mmjax": __version__, "jax": jax.__version__})
    settings.verify(workdir, identity)
    if distributed.everywhere(files.exists(workdir / "results.json")):
        print(f"{workdir} is finished already; delete it to run again")
        return files.read_json(workdir / "results.json")
    tasks, trials = experiment.tasks(config, data), experiment.trials(config, data, stores)
    if distributed.first():
        files.write_json(workdir / "config.json", identity)
    state, timing = trials.init(), {"compile_s": 0.0}
    evaluate = evaluator.Evaluator(trials, tasks, config, data, timing)
    checkpoints = Checkpoints(workdir / "checkpoints")
    try:
        best, progress = fit.fit(trials, state, evaluate, checkpoints, config, workdir, timing)
    finally:
        checkpoints.close()
    valid, test = evaluate(best, "valid")[0], evaluate(best, "test")[0]
    found = results(config, data, stores, trials.mesh, valid, test)
    found |= {
        "epochs": progress["epoch"],
        "best_epoch": progress["best_epoch"][0],
        "timing": fit.summary(timing, begin),
        "compiled": {"programs": count.programs, "from_cache": count.from_cache},
    }
    if distributed.first():
        save_users(workdir / "per_user.npz", {"valid": valid, "test": test})
        files.write_json(workdir / "results.json", found)
    distributed.wait()
    return found


def results(
    config: Config,
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


def evaluate(workdir: str | Path, split: str, change: dict[str, Any]) -> ranking.Ranking:
    """Ranks the best parameters of a run again, with parts of its config changed.

    Raises:
      InputError: the workdir holds no run or no checkpoint, or its dataset has changed.
    """
    workdir = storage.path(workdir)
    config = files.read_json(workdir / "config.json")
    data = datasets.load(config["dataset"])
    stores = experiment.features(config, data)
    settings.verify(workdir, settings.identity(_of_run(config), data, stores))
    config |= change
    config["metric"] = f"recall@{config['cutoffs'][0]}"  # nothing is chosen here
    settings.check(config)
    tasks, trials = experiment.tasks(config, data), experiment.trials(config, data, stores)
    checkpoints = Checkpoints(workdir / "checkpoints")
    try:
        latest = checkpoints.latest()
        if latest is None:
            raise InputError(f"{workdir} has no checkpoint yet; train it first")
        number, progress = latest
        best = fit.load(checkpoints, number, trials, progress, config)["best"]
    finally:
        checkpoints.close()
    return evaluator.Evaluator(trials, tasks, config, data, {"compile_s": 0.0})(best, split)[0]


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


def _of_run(identity: dict[str, Any]) -> dict[str, Any]:
    """The config part of a run's identity."""
    return {k: v for k, v in identity.items() if k not in ("data_hash", "features_hash")}
