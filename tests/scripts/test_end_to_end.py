"""scripts/experiments/end_to_end.py from a folder in MMRec's layout to its table, and again."""

import json

import numpy as np
import pytest
from support.scripting import imported, script


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    home = tmp_path_factory.mktemp("mmrec")
    raw, out = home / "raw", home / "data"
    raw.mkdir()
    rng = np.random.default_rng(0)
    lines = ["userID\titemID\trating\ttimestamp\tx_label\n"]
    for user in range(40):
        for n, item in enumerate(rng.permutation(25)[:8]):
            lines.append(f"{user}\t{item}\t5.0\t{n}\t{(0, 0, 0, 0, 1, 1, 2, 2)[n]}\n")
    (raw / "tiny.inter").write_text("".join(lines))
    for name, width in (("image_feat", 6), ("text_feat", 4)):
        np.save(raw / f"{name}.npy", rng.normal(size=(25, width)).astype(np.float32))
    done = script("prepare.py", "--source=mmrec", f"--raw={raw}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_models_train_beside_mmrecs_numbers(prepared, tmp_path):
    ask = (f"--dataset={prepared}", f"--out={tmp_path}", "--models=freedom", "--seeds=2")
    done = script("experiments/end_to_end.py", *ask)
    assert done.returncode == 0, done.stderr
    (record,) = json.loads((tmp_path / "table.json").read_text())
    assert record["model"] == "freedom"
    assert record["mmrec"]["test"] == [0.0993]
    runs = [
        json.loads((tmp_path / "runs" / f"freedom-{n}" / "results.json").read_text())
        for n in (1, 2)
    ]
    assert record["seeds"]["test"] == [run["test"]["recall@20"] for run in runs]
    assert record["ours"]["test"][0] == pytest.approx(np.mean(record["seeds"]["test"]))
    assert [run["config"]["protocol"] for run in runs] == ["mmrec", "mmrec"]
    assert sorted(runs[0]["features"]) == ["image_feat", "text_feat"]
    assert "| freedom | 0.0918 | 0.0993 |" in (tmp_path / "table.md").read_text()

    again = script("experiments/end_to_end.py", *ask)
    assert again.returncode == 0
    assert "is finished already" in again.stdout
    wrong = script("experiments/end_to_end.py", *ask[:2], "--models=itemknn")
    assert wrong.returncode == 2
    assert "models='itemknn'" in wrong.stderr


def test_within_the_spread():
    end_to_end = imported("experiments.end_to_end")

    def run(value: float) -> dict:
        test, valid = {"recall@20": value, "ndcg@20": 0.03}, {"recall@20": 0.07}
        return {"valid": valid, "test": test, "config": {"model": {}}, "best_epoch": 3}

    for values, within in (((0.064, 0.0645), True), ((0.04, 0.041), False), ((0.03, 0.09), True)):
        found = end_to_end.record_of("bm3", [run(value) for value in values])
        assert found["within"] is within
        assert found["apart"] == pytest.approx(np.mean(values) - 0.0645)
