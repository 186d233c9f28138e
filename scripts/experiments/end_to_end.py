"""Compare our recommenders with MMRec's own runs.

  python scripts/prepare.py --source=mmrec --raw=synth3k --out=data/synth3k
  python scripts/experiments/end_to_end.py --dataset=data/synth3k --out=runs/synth3k
  python scripts/experiments/end_to_end.py … --models=bm3 --seeds=5

It takes one data set in MMRec's layout, with three seeds each. Equal steps do not make equal runs:
starting values, negatives, dropout and the loop decide too. Each model trains under its `:mmrec`
preset at the point at which MMRec ran; finished work is skipped when the command runs again. Writes
table.md and table.json. MMRec's numbers are of its own code, on a CPU: one or two seeds, early
stopping after 20 validations, some cut before it stopped.
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # of scripts/

import _tuning
from _app import run

from mmjax.core import files, storage
from mmjax.core.names import choice
from mmjax.training import train

DATASET = flags.DEFINE_string("dataset", None, "A prepared folder.", required=True)
OUT = flags.DEFINE_string("out", None, "Folder of everything made.", required=True)
MODELS = flags.DEFINE_list("models", [], "Recommenders in the table's order; all if not given.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Of every recommender.", 1)

# Model -> (changes of the preset's options, MMRec's test Recall@20, valid Recall@20 and test
# nDCG@20, each a list over seeds).
REFERENCE: dict[str, tuple[dict[str, Any], list[float], list[float], list[float]]] = {
    "bprmf": ({"l_w": 0.1}, [0.0422], [0.0386], [0.0187]),
    "lightgcn": ({"layers": 2, "l_w": 0.01}, [0.0780], [0.0782], [0.0322]),
    "vbpr": ({"l_w": 1.0}, [0.0671], [0.0659], [0.0285]),
    "bm3": (
        {"layers": 1, "l_w": 0.1, "dropout": 0.3},
        [0.0641, 0.0649],
        [0.0700, 0.0663],
        [0.0249, 0.0260],
    ),
    "freedom": ({"drop": 0.8, "l_w": 1e-3}, [0.0993], [0.0918], [0.0420]),
    "lattice": ({"l_w": 1e-4}, [0.0810], [0.0743], [0.0327]),
    "mgcn": ({"cl_weight": 0.01}, [0.0764, 0.0787], [0.0721, 0.0760], [0.0317, 0.0326]),
    "slmrec": (
        {"ssl_temperature": 0.5, "ssl_weight": 0.1},
        [0.0800, 0.0769],
        [0.0723, 0.0806],
        [0.0318, 0.0299],
    ),
    "grcn": ({"l_w": 1e-3}, [0.0773], [0.0789], [0.0296]),
    "mmgcn": ({"l_w": 1e-3}, [0.0844], [0.0932], [0.0361]),
    "lgmrec": ({}, [0.0756], [0.0739], [0.0295]),
    "smore": ({"layers": 4, "l_w": 1e-4, "drop": 0.1}, [0.0378], [0.0370], [0.0165]),
    "selfcf": ({"layers": 2, "dropout": 0.5, "l_w": 0.0}, [0.0776], [0.0803], [0.0300]),
    "pgl": ({}, [0.1023], [0.0887], [0.0424]),
}
SPREAD = 0.006  # most by which seeds move MMRec's test Recall@20 on `synth3k`


def main() -> None:
    out = storage.local(OUT.value)
    models = MODELS.value or list(REFERENCE)
    for model in models:
        choice("models", model, REFERENCE)
    for model in models:
        for seed in range(1, SEEDS.value + 1):
            train.run(config_of(model) | {"seed": seed}, folder_of(model, seed, out))
        write_table(out)


def config_of(model: str) -> dict[str, Any]:
    config = importlib.import_module(f"configs.{model}").get_config("mmrec").to_dict()
    options, *_ = REFERENCE[model]
    return config | {"dataset": DATASET.value, "model": config["model"] | options}


def folder_of(model: str, seed: int, out: Path) -> Path:
    return out / "runs" / f"{model}-{seed}"


def write_table(out: Path) -> None:
    """Write finished models beside MMRec's runs of them."""
    records = []
    for model in REFERENCE:
        folders = [folder_of(model, seed, out) for seed in range(1, SEEDS.value + 1)]
        if all((folder / "results.json").exists() for folder in folders):
            runs = [files.read_json(folder / "results.json") for folder in folders]
            records.append(record_of(model, runs))
    lines = [
        "| recommender | MMRec: valid R@20 | test R@20 | test N@20 | ours: valid R@20 | test R@20 "
        "| test N@20 | best epochs | apart, test R@20 | within the spread |",
        "|:--|--:|--:|--:|--:|--:|--:|--:|--:|:--|",
    ]
    for record in records:
        theirs = [" / ".join(f"{x:.4f}" for x in record["mmrec"][key]) for key in KEYS]
        ours = [_tuning.shown(*record["ours"][key], SEEDS.value) for key in KEYS]
        epochs = ", ".join(map(str, record["best_epochs"]))
        difference = f"{record['apart']:+.4f}"
        within = "yes" if record["within"] else "NO"
        lines.append(
            f"| {record['model']} | {' | '.join([*theirs, *ours, epochs, difference, within])} |"
        )
    table = "\n".join([*lines, ""])
    files.write_bytes(out / "table.md", table.encode())
    files.write_json(out / "table.json", records)
    print(table)


KEYS = ("valid", "test", "ndcg")


def record_of(model: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a row of the table: ours, MMRec's and their difference.

    The difference is within the spread if it is at most two standard deviations of our seeds, or
    `SPREAD`, MMRec's, whichever is larger.
    """
    _, test, valid, ndcg = REFERENCE[model]
    values = {
        "valid": [result["valid"]["recall@20"] for result in runs],
        "test": [result["test"]["recall@20"] for result in runs],
        "ndcg": [result["test"]["ndcg@20"] for result in runs],
    }
    ours = {key: _tuning.spread(numbers) for key, numbers in values.items()}
    mean, deviation = ours["test"]
    difference = mean - sum(test) / len(test)
    return {
        "model": model,
        "options": runs[0]["config"]["model"],
        "mmrec": {"valid": valid, "test": test, "ndcg": ndcg},
        "ours": ours,
        "seeds": values,
        "best_epochs": [result["best_epoch"] for result in runs],
        "apart": difference,
        "within": abs(difference) <= max(SPREAD, 2 * deviation),
    }


if __name__ == "__main__":
    run(main)
