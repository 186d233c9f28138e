"""What a run says: a line an epoch on disk, whatever a kill left, a bar or plain lines."""

import json

import pytest

from mmjax.training import metric_logger
from mmjax.training.metric_logger import MetricLogger


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_line_an_epoch_and_the_same_to_tensorboard(tmp_path):
    with MetricLogger(tmp_path, total=2) as log:
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
    with MetricLogger(tmp_path, total=5, done=3):
        assert [line["epoch"] for line in lines(tmp_path)] == [1, 2, 3]  # the half line is gone
    with MetricLogger(tmp_path, total=5, done=1) as log:  # the checkpoint is older than the lines
        assert [line["epoch"] for line in lines(tmp_path)] == [1]
        log.epoch(2, {"loss": 7.0}, "")
    assert lines(tmp_path) == [{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 7.0}]
    with MetricLogger(tmp_path, total=5):  # from the start again
        assert lines(tmp_path) == []


def test_files_are_closed_when_the_run_fails(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt), MetricLogger(tmp_path, total=5) as log:  # noqa: PT012
        log.epoch(1, {"loss": 1.0}, "one")
        log.epoch(2, {"loss": 1.0}, "two")
        raise KeyboardInterrupt
    assert log._lines.closed
    assert [line["epoch"] for line in lines(tmp_path)] == [1, 2]
    assert "two" not in capsys.readouterr().err


def test_versions():
    found = metric_logger.versions("jax", "numpy")
    assert list(found) == ["python", "jax", "numpy"]
    assert all(isinstance(version, str) and version for version in found.values())
