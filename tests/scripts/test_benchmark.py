"""What the benchmark says of two measurements, what it plans, and its pictures."""

import os

import pytest
from support import forks
from support.scripting import imported

from mmjax.core import files
from mmjax.core.errors import InputError


@pytest.fixture
def timing():
    return imported("benchmark.timing")


@pytest.fixture(scope="module")
def scripts():
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    with forks.Scripts(environment) as started:
        yield started


def measured(times, *, repeats=5, flop=1e11):
    rows = [
        {"model": "vbpr", "side": "mmjax", "times": {"epoch_s": times}, "peak_flop_s": flop},
        {"model": "vbpr", "side": "torch", "times": {"epoch_s": [9.0, 9.1, 9.2]}},
    ]
    return {"cpu": "a core", "settings": {"kind": "train", "repeats": repeats}, "rows": rows}


OLD = [1.0, 1.1, 1.2]


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ([1.3, 1.4, 1.5], "slower"),
        ([0.7, 0.8, 0.9], "faster"),
        ([1.15, 1.3, 1.4], "same, within its noise"),  # one repeat lies among the old ones
        ([1.21, 1.12, 1.1], "same"),
        ([2.0, 2.1], "unsure, fewer than 3 repeats"),
    ],
)
def test_a_verdict_allows_for_noise(times, said, timing):
    table, slower = timing.compare(measured(OLD), measured(times))
    (line,) = (line for line in table.splitlines() if "vbpr, mmjax" in line)
    assert line.endswith(f"| {said} |")
    assert slower == (said == "slower")
    assert "| vbpr, torch | epoch_s | 9.1 (9–9.2) | 9.1 (9–9.2) | 1.00 | same |" in table


def test_the_machine_is_beside_it(timing):
    table, _ = timing.compare(measured(OLD), measured(OLD, flop=5e10))
    assert "products at 0.50, copies at nan times the speed it had" in table


def test_unlike_measurements_are_not_compared(timing):
    with pytest.raises(InputError, match="different things: repeats is 5 and 3"):
        timing.compare(measured(OLD), measured(OLD, repeats=3))
    empty = measured(OLD) | {"rows": []}
    with pytest.raises(InputError, match="no model and side in common"):
        timing.compare(measured(OLD), empty)


@pytest.mark.slow
def test_two_files_and_their_exit_status(scripts, tmp_path):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    files.write_json(old, measured(OLD))
    files.write_json(new, measured([2.0, 2.1, 2.2]))
    assert scripts("benchmark", f"--compare={old}", str(old)).code == 0
    done = scripts("benchmark", f"--compare={old}", str(new))
    assert done.code == 1
    assert "| 1.91 | slower |" in done.out
    done = scripts("benchmark", f"--compare={old}", str(tmp_path / "none.json"))
    assert done.code == 2
    assert "none.json is missing" in done.err


def test_a_picture_of_one_device_which_receives_nothing(tmp_path):
    row = {"model": "vbpr", "devices": 1, "held_bytes": 2e9, "scratch_bytes": 1e9}
    imported("benchmark.plots").of_scaling([row | {"received_bytes": 0}], tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_growth_and_scaling(scripts, tmp_path):
    """Two worlds timed, and a mesh of eight devices that this machine does not have."""
    kept = tmp_path / "growth.json"
    common = ("--models=lightgcn", "--batch_size=64", f"--json={kept}")
    done = scripts("benchmark", "growth", "--counts=1000,3000", "--repeats=1", *common)
    assert done.code == 0, done.err
    few, many = files.read_json(kept)["rows"]
    assert few["side"] != many["side"]  # by which two measurements are compared
    assert 0 < few["train_interactions"] < many["train_interactions"]
    picture = kept.with_suffix(".png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    picture.unlink()
    shape = ("--users=400", "--items=200", "--interactions=4000", "--meshes=1,8")
    done = scripts("benchmark", "scaling", *shape, *common)
    assert done.code == 0, done.err
    one, eight = files.read_json(kept)["rows"]
    assert eight["held_bytes"] < one["held_bytes"] / 3
    assert one["received_bytes"] == 0 < eight["received_bytes"]
    assert "| lightgcn | 8 | data=2,model=4 |" in done.out
    assert picture.read_bytes().startswith(b"\x89PNG")
