"""scripts/sweep.py as a user calls it: an estimate, a sweep, refusals in one sentence."""

from pathlib import Path

import pytest
from support import worlds
from support.scripting import script

pytestmark = pytest.mark.slow

KILLED = f"--config={Path(__file__).with_name('killed.py')}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return worlds.small(tmp_path_factory.mktemp("data") / "small")


def test_an_estimate_and_nothing_else(folder, tmp_path):
    workdir = tmp_path / "sweep"
    flags = [f"--config.dataset={folder}", "--config.models.bprmf.tune.lr=(0.01,0.02,0.03)"]
    found = script("sweep.py", KILLED, *flags, f"--workdir={workdir}", "--estimate")
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1].startswith("3 programs, 10 trials: at most ")
    assert not (workdir / "ledger.jsonl").exists()


@pytest.mark.parametrize("devices", [1, 2])
def test_a_sweep_finds_every_program_compiled(devices, folder, tmp_path, monkeypatch):
    """Ahead of time, also those of half as many trials where two devices share them."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")  # a sweep without one keeps its own
    workdir = tmp_path / "sweep"
    flags = [KILLED, f"--config.dataset={folder}", f"--workdir={workdir}"]
    if devices == 2:
        flags += [f"--config.models.{name}.config.mesh=trial=2" for name in ("bprmf", "vbpr")]
        flags += ["--config.models.bprmf.tune.lr=(0.00001,0.01,0.02,0.03)"]

    def programs():
        return {path.name for path in (workdir / "programs").glob("jit_*-cache")}

    ahead = script("sweep.py", *flags, "--compile", devices=devices)
    assert ahead.returncode == 0, ahead.stderr
    before = programs()
    large = {name for name in before if name.startswith(("jit_call", "jit_split"))}
    assert len(large) >= 3 * 4  # an epoch and two evaluations of each of the packs, and their inits
    assert not (workdir / "ledger.jsonl").exists()
    done = script("sweep.py", *flags, devices=devices)
    assert done.returncode == 0, done.stderr
    more = programs() - before
    assert not [name for name in more if name.startswith(("jit_call", "jit_split"))]


FAULTS = {
    "no dataset": ([], "give --config.dataset=..."),
    "a dataset that is not there": (["--config.dataset=/nowhere"], "/nowhere is not a prepared"),
    "another search": (["--config.dataset={folder}", "--config.search=bayes"], "search='bayes'"),
    "stores that cannot be read": (
        ["--config.dataset={folder}", "--config.stores=visual"],
        "is not NAME=STORE",
    ),
    "no seed": (["--config.dataset={folder}", "--config.seeds=()"], "at least one seed"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_sentence_and_nothing_written(folder, tmp_path, fault):
    flags, words = FAULTS[fault]
    flags = [flag.format(folder=folder) for flag in flags]
    found = script("sweep.py", KILLED, *flags, f"--workdir={tmp_path / 'sweep'}")
    assert found.returncode != 0
    assert words in found.stderr
    assert "Traceback" not in found.stderr
    assert not (tmp_path / "sweep" / "ledger.jsonl").exists()
