"""Progress: a bar on a terminal, lines with pace and time left elsewhere."""

import io
import sys

import pytest

from mmjax.core import progress
from mmjax.core.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_now_and_then_where_there_is_no_terminal(clock, capsys):
    with Progress("epoch", 8, unit="epoch") as loop:
        for epoch in range(1, 9):
            clock[0] += 4
            loop.add(1, f"loss {epoch}")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "epoch 1/8 loss 1, 4.00 s/epoch, 28 s left",
        "epoch 4/8 loss 4, 4.00 s/epoch, 16 s left",  # ten seconds after the first
        "epoch 7/8 loss 7, 4.00 s/epoch, 4 s left",
        "epoch 8/8 loss 8, 4.00 s/epoch, 0 s left",  # and always the last
    ]


def test_fast_units_are_counted_a_second(clock):
    out = io.StringIO()
    with Progress("bert", 10, every_s=0, out=out) as loop:
        clock[0] += 0.1
        loop.add(4)
        clock[0] += 0.1
        loop.add(6)
    assert out.getvalue().splitlines() == [
        "bert 4/10, 40.0 items/s, 0 s left",
        "bert 10/10, 50.0 items/s, 0 s left",
    ]


def test_a_loop_that_stops_early_says_where(clock, capsys):
    with Progress("epoch", 100) as loop:
        for step in (1, 2, 3):
            loop.add(1, f"loss {step}")
    assert capsys.readouterr().err.splitlines()[-1] == "epoch 3/100 loss 3"


def test_the_pace_of_a_resumed_loop_counts_its_own_units(clock, capsys):
    with Progress("epoch", 100, unit="epoch", done=90) as loop:
        clock[0] += 2
        loop.add(1, "loss 1")
    assert "epoch 91/100 loss 1, 2.00 s/epoch, 18 s left" in capsys.readouterr().err


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress("epoch", 2) as loop:
        loop.add(1, "loss 0.5")
        loop.add(1, "loss 0.25")
    said = capsys.readouterr().err
    assert "2/2" in said
    assert "loss 0.25" in said
