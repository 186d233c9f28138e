"""Run one config from its dataset to results.json.

A run reads the data, builds and trains the trial, chooses the epoch on valid, and reads test once.
"""

import time
from pathlib import Path
from typing import Any

import jax

from mmjax import __version__
from mmjax.core import files, storage
from mmjax.core.errors import InputError
from mmjax.data import dataset as datasets
from mmjax.evaluation import ranking
from mmjax.parallel import compile_cache, distributed
from mmjax.training import evaluator, experiment, fit, results, settings
from mmjax.training.checkpoint import Checkpoints

Config = settings.Config


def run(config: Config, workdir: str | Path) -> dict[str, Any]:
    """Train and evaluate one config, resuming after a kill.

    It writes config.json, metrics.jsonl, tensorboard/, checkpoints/, per_user.npz and results.json.

    Returns:
      The contents of results.json.

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
    if distributed.all_true(files.exists(workdir / "results.json")):
        print(f"{workdir} is finished already; delete it to run again")
        return files.read_json(workdir / "results.json")
    tasks, trials = experiment.tasks(config, data), experiment.trials(config, data, stores)
    if distributed.is_primary():
        files.write_json(workdir / "config.json", identity)
    state, timing = trials.init(), {"compile_s": 0.0}
    evaluate = evaluator.Evaluator(trials, tasks, config, data, timing)
    checkpoints = Checkpoints(workdir / "checkpoints")
    try:
        best, progress = fit.fit(trials, state, evaluate, checkpoints, config, workdir, timing)
    finally:
        checkpoints.close()
    valid, test = evaluate(best, "valid")[0], evaluate(best, "test")[0]
    assert valid is not None  # the trial is active
    assert test is not None
    record = results.record(config, data, stores, trials.mesh, valid, test)
    record |= {
        "epochs": progress["epoch"],
        "best_epoch": progress["best_epoch"][0],
        "timing": fit.summary(timing, begin),
        "compiled": {"programs": count.programs, "from_cache": count.from_cache},
    }
    if distributed.is_primary():
        results.save_users(workdir / "per_user.npz", {"valid": valid, "test": test})
        files.write_json(workdir / "results.json", record)
    distributed.barrier()
    return record


def evaluate(workdir: str | Path, split: str, change: dict[str, Any]) -> ranking.Ranking:
    """Rank the best parameters of a run with a changed config.

    `change` replaces parts of the config.

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
    found = evaluator.Evaluator(trials, tasks, config, data, {"compile_s": 0.0})(best, split)[0]
    assert found is not None  # the trial is active
    return found


def _of_run(identity: dict[str, Any]) -> dict[str, Any]:
    """Return the config part of a run's identity."""
    return {k: v for k, v in identity.items() if k not in ("data_hash", "features_hash")}
