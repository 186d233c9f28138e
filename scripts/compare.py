"""Compare all recommenders on one dataset in one table.

  python scripts/compare.py --dataset=DIR --out=OUT
  python scripts/compare.py --dataset=DIR --out=OUT --models=bprmf,freedom --seeds=3
  python scripts/compare.py --dataset=DIR --out=OUT --factor=1  # published weights, rates only

Each recommender is tuned on validation by a small grid; the test split is read once. The grids of
all trained recommenders have the same size, and each is one program: learning rates times factors
of one loss weight of the config, that of the contrast if it has one and `l_w` if not. Only where
all such weights are zero does the grid have rates only. Finished work is skipped when the
command runs again. Writes table.md, table.json and every run's own folder.
"""

import importlib
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import _tuning
from _app import run
from absl import flags

from mmjax.core import files, storage
from mmjax.recommenders import registry
from mmjax.training import train

DATASET = flags.DEFINE_string("dataset", None, "A prepared folder.", required=True)
OUT = flags.DEFINE_string("out", None, "Folder of everything made.", required=True)
MODELS = flags.DEFINE_list("models", [], "Recommenders in the table's order; all if not given.")
FEATURES = flags.DEFINE_string("features", "", "NAME=STORE,...; the dataset's own if not given.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Of every trained recommender at the end.", 1)
EPOCHS = flags.DEFINE_integer("epochs", 200, "At most.", 1)
PATIENCE = flags.DEFINE_integer("patience", 5, "Evaluations without improvement.", 1)
EVAL_EVERY = flags.DEFINE_integer("eval_every", 2, "Epochs between evaluations.", 1)
PROTOCOL = flags.DEFINE_string("protocol", "strict", "strict, mmrec or elliot.")
THRESHOLD = flags.DEFINE_float("threshold", 0.0, "Held-out ratings below it are not relevant.")
LRS = flags.DEFINE_multi_float("lr", [2e-3, 1e-2], "Learning rates of the grid.")
FACTORS = flags.DEFINE_multi_float("factor", [], "Of the loss weight; WEIGHTS' if none is given.")

CLASSICAL = """
    random mostpop itemknn userknn ease ials bprmf ngcf lightgcn sgl simgcl layergcn selfcf
"""
MULTIMODAL = """
    itemknncbf vbpr ngcfm lightgcnm mmgcn grcn dualgnn slmrec lattice micro bm3 freedom mgcn dragon
    lgmrec smore pgl
"""
NEIGHBOURS = [
    {"neighbours": k, "shrink": shrink} for k, shrink in product((20, 100, 500), (0.0, 100.0))
]
POINTS: dict[str, list[_tuning.Point]] = {  # of training-free recommenders
    "random": [{}],
    "mostpop": [{}],
    "itemknn": NEIGHBOURS,
    "userknn": NEIGHBOURS,
    "ease": [{"l2": l2} for l2 in (20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)],
    "ials": [
        {"unobserved": a, "l2": l2} for a, l2 in product((0.03, 0.1, 0.3), (3e-3, 1e-2, 3e-2))
    ],
    "itemknncbf": [{"top_k": k} for k in (5, 10, 20, 50, 100, 200)],
}
# The first of these weights that is not zero in a config is varied by these factors. Those of a
# contrast are small: what is published for sparse catalogues lets it drown the ranking on a dense
# one.
WEIGHTS = {"cl_weight": (0.01, 0.1, 1.0), "ssl_weight": (0.01, 0.1, 1.0), "l_w": (0.1, 1.0, 10.0)}
METRICS = ("recall@20", "ndcg@20")


def main() -> None:
    out = storage.local(OUT.value)
    models = MODELS.value or (CLASSICAL + MULTIMODAL).split()
    for model in models:
        registry.find(model)
    rows = []
    for model in models:
        folder = out / model
        config = _tuning.choose(base(model), points(model), folder)
        seeds = range(SEEDS.value if hasattr(registry.find(model), "loss") else 1)
        runs = [train.run({**config, "seed": n}, folder / f"seed{n}") for n in seeds]
        rows.append(record(model, runs))
        write(rows, out)


def base(model: str) -> dict[str, Any]:
    """Return a model's default config under this table's protocol."""
    config = importlib.import_module(f"configs.{model}").get_config().to_dict()
    return config | {
        "dataset": DATASET.value,
        "features": FEATURES.value or config["features"],
        "protocol": PROTOCOL.value,
        "threshold": THRESHOLD.value,
        "epochs": EPOCHS.value,
        "patience": PATIENCE.value,
        "eval_every": EVAL_EVERY.value,
    }


def points(model: str) -> list[_tuning.Point]:
    if model in POINTS:
        return POINTS[model]
    options = base(model)["model"]
    _, traced = registry.split_options(registry.find(model), options)
    weight = next((name for name in WEIGHTS if traced.get(name)), None)
    if weight is None:
        return [{"lr": lr} for lr in LRS.value]
    return [
        {"lr": lr, weight: traced[weight] * factor}
        for lr, factor in product(LRS.value, FACTORS.value or WEIGHTS[weight])
    ]


def record(model: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    first = runs[0]
    return {
        "model": model,
        "features": sorted(first["features"]),
        "lr": first["config"]["lr"],
        "options": first["config"]["model"],
        "seeds": len(runs),
        "valid": _tuning.spread([result["valid"]["recall@20"] for result in runs]),
        "test": {m: _tuning.spread([result["test"][m] for result in runs]) for m in METRICS},
        "best_epochs": [result["best_epoch"] for result in runs],
        "epoch_s": first["timing"]["epoch_s"],
        "versions": first["versions"],
        "device": first["device"],
    }


def write(rows: Sequence[dict[str, Any]], out: Path) -> None:
    head = ("recommender", "valid R@20", "R@20", "nDCG@20", "chosen", "best epoch")
    lines = [f"| {' | '.join(head)} |", "|:--|--:|--:|--:|:--|--:|"]
    for row in rows:
        tuned = [name for name in points(row["model"])[0] if name != "lr"]
        chosen = [f"{name} {row['options'][name]:g}" for name in tuned]
        chosen = [f"lr {row['lr']:g}", *chosen] if row["epoch_s"] else chosen
        values = [row["valid"], *(row["test"][metric] for metric in METRICS)]
        cells = [_tuning.shown(mean, sd, row["seeds"]) for mean, sd in values]
        epochs = ", ".join(map(str, row["best_epochs"])) if row["epoch_s"] else ""
        lines.append(f"| {' | '.join([row['model'], *cells, ', '.join(chosen), epochs])} |")
    table = "\n".join([*lines, ""])
    files.write_bytes(out / "table.md", table.encode())
    files.write_json(out / "table.json", list(rows))
    print(table, flush=True)


if __name__ == "__main__":
    run(main)
