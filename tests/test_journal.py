"""What a run says: a line an epoch on disk, whatever a kill left, a bar or plain lines."""

import json
import sys

import pytest

from mmjax import journal
from mmjax.journal import Journal


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_line_an_epoch_and_the_same_to_tensorboard(tmp_path):
    with Journal(tmp_path, total=2) as log:
        log.epoch(1, {"loss": 0.5, "valid/recall@20": 0.1}, "loss 0.5")
        assert lines(tmp_path) == [{"epoch": 1, "loss": 0.5, "valid/recall@20": 0.1}]  # at once
        log.epoch(2, {"loss": 0.25}, "loss 0.25")
    assert [line["loss"] for line in lines(tmp_path)] == [0.5, 0.25]
    (events,) = (tmp_path / "tensorboard").iterdir()
    written = events.read_bytes()
    assert b"valid/recall_20" in written
    assert b"loss" in written


def test_what_a_kill_left_is_dropped(tmp_path):
    kept = [json.dumps({"epoch": epoch, "loss": 1 / epoch}) for epoch in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(kept) + '\n{"epoch": 4, "lo')
    with Journal(tmp_path, total=5, done=3):
        assert [line["epoch"] for line in lines(tmp_path)] == [1, 2, 3]  # the half line is gone
    with Journal(tmp_path, total=5, done=1) as log:  # the checkpoint is older than the lines
        assert [line["epoch"] for line in lines(tmp_path)] == [1]
        log.epoch(2, {"loss": 7.0}, "")
    assert lines(tmp_path) == [{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 7.0}]
    with Journal(tmp_path, total=5):  # from the start again
        assert lines(tmp_path) == []


def test_plain_lines_now_and_then_where_there_is_no_terminal(tmp_path, monkeypatch, capsys):
    clock = [100.0]
    monkeypatch.setattr(journal.time, "monotonic", lambda: clock[0])
    with Journal(tmp_path, total=8) as log:
        for epoch in range(1, 9):
            clock[0] += 4
            log.epoch(epoch, {}, f"loss {epoch}")
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.splitlines() == [
        "epoch 1/8 loss 1 4.00 s/epoch, at most 28 s left",
        "epoch 4/8 loss 4 4.00 s/epoch, at most 16 s left",  # ten seconds after the first
        "epoch 7/8 loss 7 4.00 s/epoch, at most 4 s left",
        "epoch 8/8 loss 8 4.00 s/epoch, at most 0 s left",  # and always the last
    ]


def test_a_run_that_stops_early_says_where(tmp_path, capsys):
    with Journal(tmp_path, total=100) as log:
        for epoch in (1, 2, 3):
            log.epoch(epoch, {}, f"loss {epoch}")
    assert [line[:18] for line in capsys.readouterr().out.splitlines()] == [
        "epoch 1/100 loss 1",
        "epoch 3/100 loss 3",
    ]


def test_the_pace_of_a_resumed_run_counts_its_own_epochs(tmp_path, monkeypatch, capsys):
    clock = [100.0]
    monkeypatch.setattr(journal.time, "monotonic", lambda: clock[0])
    with Journal(tmp_path, total=100, done=90) as log:
        clock[0] += 2
        log.epoch(91, {}, "loss 1")
    assert "2.00 s/epoch, at most 18 s left" in capsys.readouterr().out


def test_a_bar_on_a_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Journal(tmp_path, total=2) as log:
        log.epoch(1, {}, "loss 0.5")
        log.epoch(2, {}, "loss 0.25")
    said = capsys.readouterr()
    assert said.out == ""
    assert "2/2" in said.err
    assert "loss 0.25" in said.err


def test_files_are_closed_when_the_run_fails(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt), Journal(tmp_path, total=5) as log:  # noqa: PT012
        log.epoch(1, {"loss": 1.0}, "one")
        log.epoch(2, {"loss": 1.0}, "two")
        raise KeyboardInterrupt
    assert log._lines.closed
    assert [line["epoch"] for line in lines(tmp_path)] == [1, 2]
    assert "two" not in capsys.readouterr().out


def test_versions():
    found = journal.versions("jax", "numpy")
    assert list(found) == ["python", "jax", "numpy"]
    assert all(isinstance(version, str) and version for version in found.values())
