"""Test whether descriptions by vision-language models help on Allrecipes.

  python scripts/experiments/allrecipes.py --raw=allrecipes --out=runs/allrecipes

One command goes from files to a table. It prepares the given split (protocol elliot, threshold 4);
makes attributes of Qwen2-VL's and Phi-3.5-vision's keywords, and as a control Qwen2-VL's given to
other items; MiniLM embeddings of Qwen2-VL's descriptions and of its answers to the misaligned
prompt, and two noise controls. It tunes ItemKNN and AttributeItemKNN equally (--trials random draws
from arXiv 2508.04571's spaces), and BPRMF, VBPR and BM3 on one grid, all on the validation split.
It reads the test split once for the chosen configs, and compares users in pairs. Finished work is
skipped when the same command runs again. Writes table.md and table.json.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # of scripts/

import _tuning
from _app import run

from configs import attributeitemknn, bm3, bprmf, itemknn, mostpop, vbpr
from mmjax.core import files, storage
from mmjax.core.names import choice
from mmjax.data import dataset as datasets
from mmjax.data.prepare import prepare
from mmjax.data.sources import elliot
from mmjax.encoders.registry import load_encoder
from mmjax.evaluation.significance import paired
from mmjax.features import controls
from mmjax.features.descriptions import describe
from mmjax.features.extraction.extract import extract
from mmjax.features.extraction.inputs import Inputs
from mmjax.features.extraction.job import Job
from mmjax.parallel import mesh
from mmjax.recommenders.itemknn import SIMILARITIES
from mmjax.training import train

RAW = flags.DEFINE_string("raw", None, "Folder of the splits and the answers.", required=True)
OUT = flags.DEFINE_string("out", None, "Folder of everything made.", required=True)
TRIALS = flags.DEFINE_integer("trials", 30, "Random draws for each neighbourhood model.", 1)
SEEDS = flags.DEFINE_integer("seeds", 3, "Of BPRMF, VBPR and BM3 at the end.", 1)
EPOCHS = flags.DEFINE_integer("epochs", 200, "Of BPRMF, VBPR and BM3.", 1)
ONLY = flags.DEFINE_list("only", [], "Names of rows to do; all if not given.")

KEYWORDS = {"qwen2vl": "allrecipes_qwen2_keywords.csv", "phi35": "allrecipes_phi35_keyword.csv"}
TEXTS = {
    "descriptions": "allrecipes_qwen_2vl_7b_descriptive.csv",
    "misaligned": "allrecipes_qwen_2vl_7b_mis.csv",
}
NOISE = ("gaussian", "multivariate")
GRID = [{"lr": lr, "l_w": l_w} for lr in (5e-4, 1e-3, 5e-3) for l_w in (1e-2, 1e-1)]
METRICS = ("recall@20", "ndcg@20", "hr@20")
# row -> (its config, the modality and store of its features, the row it is compared with)
ROWS = {
    "MostPop": (mostpop, "", ""),
    "ItemKNN": (itemknn, "", ""),
    **{
        f"AttributeItemKNN {name}": (attributeitemknn, f"attributes={name}/attributes", "ItemKNN")
        for name in (*KEYWORDS, "shuffled")
    },
    "BPRMF": (bprmf, "", ""),
    **{
        f"{model} {name}": (module, f"textual=texts/{name}", "BPRMF")
        for model, module in (("VBPR", vbpr), ("BM3", bm3))
        for name in (*TEXTS, *NOISE)
    },
}
# Rivals of rows that are compared with more than their model without content.
RIVALS = {
    f"{model} descriptions": ["BPRMF", *(f"{model} {kind}" for kind in ("misaligned", *NOISE))]
    for model in ("VBPR", "BM3")
}


def main() -> None:
    raw, out = storage.local(RAW.value), storage.local(OUT.value)
    rows = ONLY.value or list(ROWS)
    for row in rows:
        choice("only", row, ROWS)
    make_features(rows, raw, out)
    for row in rows:
        finish(row, choose(row, out), out)
    write_table(out)


def make_features(rows: Sequence[str], raw: Path, out: Path) -> None:
    """Prepare the dataset and the features of the rows.

    They are attributes, embeddings of texts, and controls.
    """
    if not (out / "data").exists():
        data = prepare(elliot.read(raw), name="allrecipes", cold_users="drop")
        with files.atomic_folder(out / "data") as staging:
            datasets.save(data, staging)
    data, options = datasets.load(out / "data"), {"weights": "all-MiniLM-L6-v2"}

    def answers(file: str) -> Inputs:
        return describe.in_order(describe.read_table(raw / file, None, None), data)

    for name, file in KEYWORDS.items():
        if any(row.startswith("Attribute") for row in rows) and not (out / name).exists():
            embed = describe.embedder(load_encoder("bert", options))
            print(describe.card(describe.describe(answers(file), out / name, embed)))
    if "AttributeItemKNN shuffled" in rows and not (out / "shuffled").exists():
        source, target = (out / name / "attributes" for name in ("qwen2vl", "shuffled"))
        controls.control(source, target, "shuffle")
    if any(ROWS[row][1].startswith("textual=") for row in rows):
        for name, file in TEXTS.items():
            job = Job("bert", str(out / "texts" / name), options)
            print(extract(answers(file), job, mesh=mesh.make("data=-1")))
        for kind in NOISE:
            if not (out / "texts" / kind).exists():
                controls.control(out / "texts" / "descriptions", out / "texts" / kind, kind)


def base(row: str, out: Path) -> dict[str, Any]:
    """Return a row's config before tuning.

    It has the fork's options and loop.
    """
    module, features, _ = ROWS[row]
    config = module.get_config("elliot" if module is not mostpop else "").to_dict()
    name, _, store = features.partition("=")
    config |= {
        "dataset": str(out / "data"),
        "features": f"{name}={out / store}" if features else "",
        "protocol": "elliot",
        "threshold": 4.0,
        "epochs": EPOCHS.value,
    }
    return config


def draws(attributes: bool) -> list[dict[str, Any]]:
    """Draw options of the neighbourhood models.

    Both models get the same draws of the options they share.
    """
    rng = np.random.default_rng(0)
    points = []
    for _ in range(TRIALS.value):
        draw = {
            "neighbours": int(rng.integers(5, 1001)),
            "similarity": str(rng.choice(SIMILARITIES)),
            "alpha": float(rng.uniform(0, 2)),
            "beta": float(rng.uniform(0, 2)),
        }
        extra = {
            "weight": float(np.exp(rng.uniform(-5, 5))),
            "feature_weighting": str(rng.choice(["none", "tfidf", "bm25"])),
        }
        points.append(draw | extra if attributes else draw)
    return points


def choose(row: str, out: Path) -> dict[str, Any]:
    """Return a row's config with the point chosen on validation.

    tuning.jsonl beside the runs lists all points.
    """
    config, module = base(row, out), ROWS[row][0]
    if module is mostpop:
        return config
    neighbourhood = module in (itemknn, attributeitemknn)
    points = draws(module is attributeitemknn) if neighbourhood else GRID
    return _tuning.choose(config, points, folder_of(row, out))


def finish(row: str, config: dict[str, Any], out: Path) -> None:
    """Train the chosen config and test it, once a seed."""
    for seed in seeds_of(row):
        train.run({**config, "seed": seed}, folder_of(row, out) / f"seed{seed}")


def seeds_of(row: str) -> Sequence[int]:
    return range(SEEDS.value) if ROWS[row][0] in (bprmf, vbpr, bm3) else (0,)


def folder_of(row: str, out: Path) -> Path:
    return out / "runs" / row.lower().replace(" ", "-")


def write_table(out: Path) -> None:
    """Write test metrics of finished rows and paired comparisons."""
    done = {}
    for row in ROWS:
        folders = [folder_of(row, out) / f"seed{seed}" for seed in seeds_of(row)]
        if all((folder / "results.json").exists() for folder in folders):
            done[row] = folders
    records = [record_of(row, done) for row in done]
    lines = ["| recommender | valid R@20 | R@20 | nDCG@20 | HR@20 | R@20 of users against: t, W |"]
    lines.append("|:--|--:|--:|--:|--:|:--|")
    for record in records:
        means = [record["valid"], *(record["test"][metric] for metric in METRICS)]
        shown = [_tuning.shown(mean, sd, record["seeds"]) for mean, sd in means]
        tests = [
            f"{rival}: {pair['recall@20']['difference']:+.4f}, p = {pair['recall@20']['t']:.2g}, "
            f"{pair['recall@20']['wilcoxon']:.2g}"
            for rival, pair in record["against"].items()
        ]
        lines.append(f"| {' | '.join([record['row'], *shown, '; '.join(tests)])} |")
    table = "\n".join([*lines, ""])
    files.write_bytes(out / "table.md", table.encode())
    files.write_json(out / "table.json", records)
    print(table)


def record_of(row: str, done: dict[str, list[Path]]) -> dict[str, Any]:
    """Return a row of the table.

    It has (mean, sd) over seeds, and compares its users with those of its rivals.
    """
    runs = [files.read_json(folder / "results.json") for folder in done[row]]
    rivals = [rival for rival in RIVALS.get(row, [ROWS[row][2]]) if rival in done]
    return {
        "row": row,
        "seeds": len(runs),
        "lr": runs[0]["config"]["lr"],
        "model": runs[0]["config"]["model"],
        "valid": _tuning.spread([result["valid"]["recall@20"] for result in runs]),
        "test": {
            metric: _tuning.spread([result["test"][metric] for result in runs])
            for metric in METRICS
        },
        "against": {
            rival: {
                metric: paired(users_of(done[row], metric), users_of(done[rival], metric))._asdict()
                for metric in METRICS
            }
            for rival in rivals
        },
    }


def users_of(folders: Sequence[Path], metric: str) -> np.ndarray:
    """Return a metric of every test user [N], averaged over seeds."""
    values = []
    for folder in folders:
        with np.load(folder / "per_user.npz") as arrays:
            values.append(arrays[f"test/{metric}"].astype(np.float64))
    return np.mean(values, axis=0)


if __name__ == "__main__":
    run(main)
