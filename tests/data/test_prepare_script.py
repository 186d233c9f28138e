"""scripts/prepare.py as a user runs it: a folder that loads, or one sentence and nothing."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmjax import store
from mmjax.data import dataset

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "prepare.py"


def run(*arguments):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
    )


def test_world(tmp_path):
    out = tmp_path / "deep" / "world"
    small = ("--users=60", "--items=50", "--interactions=400", "--seed=3")
    done = run("--source=world", *small, f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert "users  60" in done.stdout
    assert "dataset.json, images, interactions.npz, items.jsonl, users.txt" in done.stdout
    data = dataset.load(out)
    assert (data.name, data.n_users, data.n_items) == ("world", 60, 50)
    assert data.statistics()["items_without_image"] == data.statistics()["items_without_text"] == 1
    assert all(Path(path).exists() for path in data.images if path)
    assert data.made_by["seed"] == data.made_by["split_seed"] == 3
    assert [path.name for path in out.parent.iterdir()] == ["world"]  # nothing aside

    again = run("--source=world", *small, f"--out={out}")
    assert again.returncode == 2
    assert "exists already; choose another folder or pass --overwrite" in again.stderr
    again = run("--source=world", *small, f"--out={out}", "--overwrite", "--noimages")
    assert again.returncode == 0
    replaced = dataset.load(out)
    assert replaced.interaction_hash() == data.interaction_hash()
    assert not any(replaced.images)


def test_mmrec_features_become_stores(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    rows = [(u, i, (0, 0, 0, 1, 2)[i // 3]) for u in range(4) for i in range(0, 15, 3)]
    (raw / "x.inter").write_text(
        "userID\titemID\tx_label\n" + "".join(f"{u}\t{i}\t{x}\n" for u, i, x in rows)
    )
    features = np.random.default_rng(0).normal(size=(13, 6)).astype(np.float32)
    np.save(raw / "text_feat.npy", features)
    done = run("--source=mmrec", f"--raw={raw}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    data = dataset.load(out)
    assert data.item_ids == [str(n) for n in range(13)]
    opened = store.open_store(out / "features" / "text_feat", item_hash=data.item_hash())
    np.testing.assert_array_equal(opened.block(0, 13)[0], features)


FAULTS = {
    "unknown source": (("--source=wold",), "--source=wold is not one of world, movielens, elliot"),
    "no source": ((), "--source is missing"),
    "no raw": (("--source=elliot",), "--raw is missing"),
    "nothing there": (("--source=elliot", "--raw=RAW/none"), "none is missing; check --raw"),
    "missing file": (("--source=elliot", "--raw=RAW"), "train.tsv is missing"),
    "unknown flag": (("--source=world", "--usrs=3"), "usrs"),
    "k-core": (
        ("--source=interactions", "--raw=RAW/log.csv", "--k_core=9"),
        "no interaction is left (6 read, 6 without repeats, 0 in the 9-core); loosen the filters",
    ),
    "cold user": (
        ("--source=interactions", "--raw=RAW/log.csv"),
        "1 users have held-out but no train interactions, user '2' among them",
    ),
    "rating": (
        ("--source=interactions", "--raw=RAW/bad.csv"),
        "bad.csv, row 3, column rating: 'good', which is not a number",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_end_with_one_sentence_and_no_folder(tmp_path, fault):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "log.csv").write_text("user,item\n1,1\n1,2\n1,3\n1,4\n1,5\n2,1\n")
    (raw / "bad.csv").write_text("user,item,rating\n1,1,5\n1,2,good\n")
    flags, message = FAULTS[fault]
    flags = [flag.replace("RAW", str(raw)) for flag in flags]
    done = run(*flags, f"--out={tmp_path / 'out'}")
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]
