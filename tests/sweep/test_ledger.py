"""The ledger: whole lines or none, whatever cuts it off; leases: one holder."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.core.errors import InputError
from mmjax.sweep.leases import Leases
from mmjax.sweep.ledger import Ledger

SPAWN = multiprocessing.get_context("spawn")


def event(number, kind="done", **more):
    return {"event": kind, "trial": f"t{number}", "cell": "c", **more}


def test_events_by_kind(tmp_path):
    ledger, other = Ledger(tmp_path), Ledger(tmp_path)
    ledger.append([event(1, valid=0.5), event(2, "failed", error="why")])
    ledger.append([event(1, "chosen"), event(1, "tested")])
    assert not other.done
    other.refresh()
    for one in (ledger, other, Ledger(tmp_path)):
        assert one.done["t1"]["valid"] == 0.5
        assert set(one.failed) == {"t2"}
        assert one.chosen["c"]["trial"] == "t1"
        assert set(one.tested) == {"t1"}
    assert all(line["by"] and line["at"] for line in other.done.values())


def test_what_is_noted_is_not_repeated(tmp_path):
    """By another process either; a failure may be, and a choice may change."""
    ledger, other = Ledger(tmp_path), Ledger(tmp_path)
    events = [event(1, valid=0.5), event(1, "chosen"), event(1, "tested")]
    ledger.append(events)
    other.append([*events, event(2, "failed"), event(2, "failed"), event(2, "chosen")])
    lines = (tmp_path / "ledger.jsonl").read_text().splitlines()
    kinds = [json.loads(line)["event"] for line in lines]
    assert kinds == ["done", "chosen", "tested", "failed", "failed", "chosen"]
    ledger.refresh()
    assert ledger.chosen["c"]["trial"] == "t2"


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_cut_anywhere_loses_only_the_last_line(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("ledger")
    Ledger(folder).append(event(n) for n in range(4))
    path = folder / "ledger.jsonl"
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    left = whole[:cut].count(b"\n")
    ledger = Ledger(folder)
    assert list(ledger.done) == [f"t{n}" for n in range(left)]
    ledger.append([event(9)])
    assert list(Ledger(folder).done) == [*(f"t{n}" for n in range(left)), "t9"]


def test_a_damaged_last_line_is_dropped_and_said(tmp_path, capsys):
    Ledger(tmp_path).append(event(n) for n in range(2))
    with open(tmp_path / "ledger.jsonl", "ab") as file:
        file.write(b'{"event": "done", "tri\x00\xff\n')
    Ledger(tmp_path).append([event(2)])
    assert "dropped its last line" in capsys.readouterr().out
    assert list(Ledger(tmp_path).done) == ["t0", "t1", "t2"]


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    Ledger(tmp_path).append(event(n) for n in range(3))
    path = tmp_path / "ledger.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "nonsense\n", lines[2]]))
    with pytest.raises(InputError, match="line 2 is damaged"):
        Ledger(tmp_path)


def _append_on_a_full_disk(folder, room):
    """Appends where files may grow by `room` bytes only, which cuts a write as a full disk does."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = (Path(folder) / "ledger.jsonl").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, size + room))
    try:
        Ledger(folder).append([event(5), event(6)])
    except InputError as error:
        print(error)


@pytest.mark.parametrize("room", [0, 10, 150])
def test_a_full_disk_leaves_nothing_half_written(tmp_path, room):
    Ledger(tmp_path).append([event(1)])
    before = (tmp_path / "ledger.jsonl").read_bytes()
    code = f"import test_ledger; test_ledger._append_on_a_full_disk({str(tmp_path)!r}, {room})"
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert "ledger.jsonl cannot be written" in done.stdout
    assert "make room" in done.stdout
    assert (tmp_path / "ledger.jsonl").read_bytes() == before


def _append_many(folder, first):
    ledger = Ledger(folder)
    for number in range(first, first + 50):
        ledger.append([event(number), event(number, "tested")])


@pytest.mark.slow
def test_processes_append_side_by_side(tmp_path):
    workers = [SPAWN.Process(target=_append_many, args=(tmp_path, 100 * n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    lines = (tmp_path / "ledger.jsonl").read_text().splitlines()
    assert len(lines) == 300
    found = Ledger(tmp_path)
    assert len(found.done) == len(found.tested) == 150
    assert all(json.loads(line)["cell"] == "c" for line in lines)


def _take(folder, names, most, out):
    leases = Leases(folder / "leases", Ledger(folder).locked, 60)
    out.put(leases.take(names, most))
    time.sleep(30)  # it holds them until it is killed


def other_takes(folder, names, most):
    """Another process, and the names that it holds."""
    out = SPAWN.Queue()
    process = SPAWN.Process(target=_take, args=(folder, names, most, out), daemon=True)
    process.start()
    return process, out.get(timeout=60)


def test_a_name_has_one_holder_until_that_is_gone(tmp_path):
    leases = Leases(tmp_path / "leases", Ledger(tmp_path).locked, 60)
    other, theirs = other_takes(tmp_path, ["a", "b", "c"], 2)
    assert theirs == ["a", "b"]
    assert leases.take(["a", "b", "c"], 3) == ["c"]
    assert leases.take(["c"], 1) == []
    other.kill()
    other.join()
    assert leases.take(["a", "b"], 2) == ["a", "b"]  # at once: its process is gone from this host


def test_a_lease_of_another_host_expires(tmp_path):
    leases = Leases(tmp_path / "leases", Ledger(tmp_path).locked, 5)
    path = tmp_path / "leases" / "a"
    path.write_text("elsewhere:1")
    assert leases.take(["a"], 1) == []
    then = time.time() - 6
    os.utime(path, (then, then))
    assert leases.take(["a"], 1) == ["a"]


def test_a_kept_lease_is_touched_and_given_back(tmp_path):
    leases = Leases(tmp_path / "leases", Ledger(tmp_path).locked, 0.4)
    path = tmp_path / "leases" / "a"
    (name,) = leases.take(["a"], 1)
    begin = path.stat().st_mtime
    with leases.kept([name]):
        for _ in range(100):
            time.sleep(0.05)
            if path.stat().st_mtime > begin:
                break
        assert path.stat().st_mtime > begin
        assert leases.mine("a")
        path.write_text("elsewhere:1")  # slept too long, and was taken over
    assert path.read_text() == "elsewhere:1"
