"""Several processes as one: the same numbers, a sentence for every fault, nobody left waiting."""

import json
import os
import signal
import socket
import time

import numpy as np
import psutil
import pytest
from support import worlds
from support.launching import ROOT, finished, mpirun, start, together, until

from mmjax.core.errors import InputError
from mmjax.parallel import distributed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return worlds.small(tmp_path_factory.mktemp("data") / "small", users=203, items=101)


def train(folder, workdir, **changes):
    """The command that trains; LightGCN, whose graph is in pieces."""
    changes = {"dataset": folder, "epochs": 4, "batch_size": 512, "mesh": "data=-1"} | changes
    flags = [f"--config.{name}={value}" for name, value in changes.items()]
    return ["scripts/train.py", "--config=configs/lightgcn.py", *flags, f"--workdir={workdir}"]


def results(workdir):
    return json.loads((workdir / "results.json").read_text())


def of_users(workdir):
    with np.load(workdir / "per_user.npz") as kept:
        return dict(kept)


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    """A run of one process and one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    code, said = finished(start(*train(folder, workdir)))
    assert code == 0, said
    return workdir


@pytest.mark.parametrize(("count", "devices", "mesh"), [(2, 2, "data=2,model=2"), (4, 1, "data=4")])
def test_numbers_of_one_process(count, devices, mesh, folder, alone, tmp_path):
    code, said = finished(together(count, train(folder, tmp_path / "run", mesh=mesh), devices))
    assert code == 0, said
    mine, theirs = results(tmp_path / "run"), results(alone)
    assert mine["best_epoch"] == theirs["best_epoch"]
    for split in ("valid", "test"):
        assert mine[split] == pytest.approx(theirs[split], abs=1e-6)
    ours, others = of_users(tmp_path / "run"), of_users(alone)
    np.testing.assert_array_equal(ours["test/ranked"], others["test/ranked"])
    assert said.count("wrote ") == 1  # one process speaks
    if count == 2:
        ranks = ["scripts/evaluate.py", f"--workdir={tmp_path / 'run'}", "--cutoffs=5"]
        found = finished(together(2, [*ranks, f"--json={tmp_path / 'five.json'}"], devices))
        assert found[0] == 0, found[1]
        assert set(json.loads((tmp_path / "five.json").read_text())) >= {"recall@5"}


def test_sigterm_to_one_saves_all_and_another_mesh_goes_on(folder, tmp_path):
    """Status 75, and then one process ends as if nothing had been."""
    long = {"epochs": 60, "eval_every": 20, "checkpoint_seconds": 1000}
    run = together(2, train(folder, tmp_path / "run", **long))
    until((tmp_path / "run" / "metrics.jsonl").exists)
    until(lambda: (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") > 1)
    os.kill(workers(tmp_path / "run")[-1], signal.SIGTERM)
    code, said = finished(run)
    assert code == 75, said
    assert "is saved after epoch" in said
    assert finished(start(*train(folder, tmp_path / "run", **long)))[0] == 0
    assert finished(start(*train(folder, tmp_path / "whole", **long)))[0] == 0
    mine, theirs = (results(tmp_path / name) for name in ("run", "whole"))
    assert mine["test"] == pytest.approx(theirs["test"], abs=1e-6)
    assert mine["best_epoch"] == theirs["best_epoch"]


def test_sigterm_to_a_single_process(folder, tmp_path):
    run = start(*train(folder, tmp_path, epochs=2000, eval_every=1000))
    until((tmp_path / "metrics.jsonl").exists)
    run.send_signal(signal.SIGTERM)
    code, said = finished(run)
    assert code == 75, said
    assert "the same command goes on" in said


def test_a_dead_process_ends_the_others(folder, tmp_path):
    """With a sentence, and soon."""
    run = together(2, train(folder, tmp_path / "run", epochs=2000, eval_every=1000))
    until((tmp_path / "run" / "metrics.jsonl").exists)
    until(lambda: (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") > 1)
    os.kill(workers(tmp_path / "run")[-1], signal.SIGKILL)
    code, said = finished(run, 90)
    assert code not in (0, 75), said
    assert "another process died or hangs" in said
    assert not workers(tmp_path / "run")


@pytest.mark.parametrize("which", [0, -1])
def test_a_stopped_process_ends_the_others(which, folder, tmp_path):
    """Neither dead nor alive: a sentence before JAX would abort."""
    run = together(2, train(folder, tmp_path / "run", epochs=20000, eval_every=10000))
    until((tmp_path / "run" / "metrics.jsonl").exists)
    until(lambda: (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") > 1)
    victim, begin = workers(tmp_path / "run")[which], time.monotonic()
    os.kill(victim, signal.SIGSTOP)
    until(lambda: len(workers(tmp_path / "run")) == 1, 60)
    assert time.monotonic() - begin < 50
    os.kill(victim, signal.SIGKILL)
    code, said = finished(run)
    assert code in (76, 137), said  # of the two, the first that the launcher sees
    assert "another process died or hangs" in said
    assert "said nothing for 20 s" in said


def workers(workdir):
    """The processes that train there, without their launcher."""
    every = [(one.pid, one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])]
    mine = [(pid, words) for pid, words in every if f"--workdir={workdir}" in words]
    return [pid for pid, words in mine if not any("local.py" in word for word in words)]


def test_processes_with_different_settings(folder, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        where = f"--coordinator=127.0.0.1:{probe.getsockname()[1]}"
    both = [
        start(*train(folder, tmp_path, lr=rate), where, "--processes=2", f"--process={n}")
        for n, rate in enumerate((0.001, 0.002))
    ]
    for code, said in map(finished, both):
        assert code == 2, said
        assert "process 1 was started with other settings than process 0: lr is 0.002" in said
    assert not (tmp_path / "config.json").exists()


def test_a_coordinator_that_is_not_there(folder, tmp_path):
    where = ("--coordinator=127.0.0.1:1", "--processes=2", "--process=1", "--join_seconds=2")
    code, said = finished(start(*train(folder, tmp_path), *where), 60)
    assert code == 2
    assert "did not come together within 2 s" in said


def test_a_script_of_one_process_refuses_to_be_many(tmp_path):
    prepare = ("scripts/prepare.py", "--source=world", f"--out={tmp_path / 'out'}")
    code, said = finished(start(*prepare, OMPI_COMM_WORLD_SIZE="2"))
    assert code == 2
    assert "this script is a single process" in said


def test_one_may_take_longer_than_a_collective_waits(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    code, said = finished(together(2, ["tests/support/slow_first.py"]))
    assert code == 0, said
    assert said.count("[['done', True], [None, True]]") == 2


def test_open_mpi(folder, alone, tmp_path):
    """The real mpirun, through its launch script."""
    run = mpirun(train(folder, tmp_path / "run"))
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("wrote ") == 1
    assert results(tmp_path / "run")["test"] == pytest.approx(results(alone)["test"], abs=1e-6)


def test_a_sweep_under_open_mpi(folder, tmp_path):
    """Its processes share the work by leases; each trial is done once."""
    config = ROOT / "tests" / "sweep" / "killed.py"
    flags = [f"--config={config}", f"--config.dataset={folder}", f"--workdir={tmp_path / 'sweep'}"]
    run = mpirun(["scripts/sweep.py", *flags])
    assert run.returncode == 0, run.stdout + run.stderr
    lines = (tmp_path / "sweep" / "ledger.jsonl").read_text().splitlines()
    done = [event["trial"] for event in map(json.loads, lines) if event["event"] == "done"]
    assert len(done) == len(set(done)) > 4


def test_open_mpi_over_hosts(monkeypatch):
    monkeypatch.setenv("PMIX_NAMESPACE", "prterun-node-1-4097@1")
    numbers = {"SIZE": "16", "RANK": "9", "LOCAL_SIZE": "8", "LOCAL_RANK": "1"}
    for name, value in numbers.items():
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", value)
    assert distributed.open_mpi() == {
        "coordinator_address": "node-1:61441",
        "num_processes": 16,
        "process_id": 9,
        "local_device_ids": [1],
    }


def test_what_a_launcher_says(monkeypatch):
    assert not distributed.launched()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert not distributed.launched()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert distributed.launched()


def test_numbers_that_contradict():
    with pytest.raises(InputError, match="process 2 of 2 at host:1: give the number"):
        distributed.join("host:1", 2, 2)


def test_one_process_agrees_with_itself():
    distributed.agree({"lr": 1.0})
    assert distributed.all_gather({"a": [1]}) == [{"a": [1]}]
    assert distributed.all_true(True)
    assert not distributed.broadcast_flag(False)
