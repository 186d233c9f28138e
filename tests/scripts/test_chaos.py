"""The script that kills: what it compares, and a run of it."""

import json

import numpy as np
import pytest
from support import worlds
from support.scripting import imported, script


@pytest.fixture
def chaos():
    return imported("chaos")


def trained(folder, value=0.5, epochs=(1, 2), ranked=(3, 1)):
    folder.mkdir()
    results = {"valid": {"recall@20": value}, "test": {}, "epochs": 2, "best_epoch": 1}
    (folder / "results.json").write_text(json.dumps(results))
    np.savez(folder / "per_user.npz", ranked=np.array(ranked))
    written = "".join(json.dumps({"epoch": epoch}) + "\n" for epoch in epochs)
    (folder / "metrics.jsonl").write_text(written)
    return folder


def test_runs_are_compared(chaos, tmp_path):
    whole = trained(tmp_path / "whole")
    assert chaos.compare_training(whole, trained(tmp_path / "same")) == []
    for name, change, fault in (
        ("value", {"value": 0.4}, "valid differs"),
        ("twice", {"epochs": (1, 1, 2)}, "epochs missing or twice"),
        ("lists", {"ranked": (1, 3)}, "ranked differs"),
    ):
        assert chaos.compare_training(whole, trained(tmp_path / name, **change)) == [fault]


def test_sweeps_are_compared(chaos, tmp_path):
    def ledger(name, *events):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "ledger.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
        return folder

    done = {"event": "done", "trial": "a", "cell": "c", "valid": 0.5}
    whole = ledger("whole", done, {"event": "chosen", "cell": "c"})
    assert chaos.compare_sweep(whole, ledger("twice", done, done)) == [
        "done a is there 2 times",
        "chosen c is missing",
    ]
    other = ledger("other", done | {"valid": 0.4}, {"event": "chosen", "cell": "c"})
    assert chaos.compare_sweep(whole, other) == ["done a differs"]


@pytest.mark.slow
def test_a_run_that_is_killed(tmp_path):
    folder = worlds.small(tmp_path / "small")
    flags = [f"--config.dataset={folder}", "--config.epochs=400", "--config.eval_every=50"]
    flags += ["--config.batch_size=512", "--config.patience=0", "--config.checkpoint_seconds=0"]
    moments = ["--kills=1", "--least_s=4", "--most_s=4.5", f"--out={tmp_path / 'runs'}"]
    ended = script(
        "chaos.py", *moments, "--", "scripts/train.py", "--config=configs/bprmf.py", *flags
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "all equal, nothing twice" in ended.stdout


@pytest.mark.slow
def test_a_command_that_it_does_not_know(tmp_path):
    ended = script("chaos.py", f"--out={tmp_path / 'runs'}", "--", "scripts/report.py")
    assert ended.returncode == 2
    assert "give a command of train.py, extract.py, sweep.py after --" in ended.stderr
