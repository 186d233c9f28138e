"""Choose hyper-parameters on validation, for scripts that make tables."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mmjax.data import dataset as datasets
from mmjax.recommenders import registry
from mmjax.training import evaluator, experiment, fit
from mmjax.training.checkpoint import Checkpoints

Point = dict[str, Any]  # values of lr and of a recommender's options


def choose(config: Mapping[str, Any], points: Sequence[Point], folder: Path) -> dict[str, Any]:
    """Return the config with the best point on validation.

    `folder`/tuning.jsonl lists all points. Points of a recommender that is trained must differ in
    traced values only: they are one program.
    """
    ledger = folder / "tuning.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    lines = ledger.read_text().splitlines() if ledger.exists() else []
    tried = [json.loads(line) for line in lines][: len(points)]
    remaining = points[len(tried) :]
    if hasattr(registry.find(config["recommender"]), "loss"):
        values = train_grid(config, remaining, folder) if remaining else []
    else:
        values = (rank(changed(config, point)) for point in remaining)
    for point, value in zip(remaining, values, strict=True):
        tried.append({"point": point, "valid": value})
        with open(ledger, "a", encoding="utf-8") as out:
            out.write(json.dumps(tried[-1]) + "\n")
        print(folder.name, tried[-1], flush=True)
    ranked = [trial for trial in tried if trial["valid"] is not None]  # None: it diverged at once
    return changed(config, max(ranked, key=lambda trial: trial["valid"])["point"])


def changed(config: Mapping[str, Any], point: Point) -> dict[str, Any]:
    options = {name: value for name, value in point.items() if name != "lr"}
    lr = point.get("lr", config["lr"])
    return {**config, "lr": lr, "model": {**config["model"], **options}}


def rank(config: dict[str, Any]) -> float:
    """Return the validation metric of a training-free recommender."""
    data = datasets.load(config["dataset"])
    trials = experiment.trials(config, data, experiment.features(config, data))
    tasks, timing = experiment.tasks(config, data), {"compile_s": 0.0}
    evaluate = evaluator.Evaluator(trials, tasks, config, data, timing)
    return evaluate.select(evaluate(trials.init(), "valid", lists=False)[0])


def train_grid(
    config: Mapping[str, Any], points: Sequence[Point], folder: Path
) -> list[float | None]:
    """Train all points as one program; return their best validation metrics."""
    data = datasets.load(config["dataset"])
    trials = experiment.trials(config, data, experiment.features(config, data), points)
    timing: dict[str, Any] = {"compile_s": 0.0}
    evaluate = evaluator.Evaluator(trials, experiment.tasks(config, data), config, data, timing)
    checkpoints = Checkpoints(folder / "tuning")
    try:
        _, progress = fit.fit(
            trials, trials.init(), evaluate, checkpoints, config, folder / "tuning", timing
        )
    finally:
        checkpoints.close()
    return progress["best"]


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation over seeds."""
    return float(np.mean(values)), float(np.std(values, ddof=int(len(values) > 1)))


def shown(mean: float, sd: float, seeds: int) -> str:
    return f"{mean:.4f}" + (f" ± {sd:.4f}" if seeds > 1 else "")
