"""Sweeps from config to tested runs: equal to runs alone, killed, shared, failing, refused."""

import json
import shutil
import signal
import subprocess
import sys
import time
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support import worlds

from configs import common
from mmjax import store
from mmjax.core import files
from mmjax.core.errors import InputError
from mmjax.data import dataset
from mmjax.sweep import batching, final_test, space, worker
from mmjax.sweep.ledger import Ledger
from mmjax.sweep.plan import Plan, survey
from mmjax.sweep.resources import Resources
from mmjax.training import train

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
LOOP = dict(epochs=4, batch_size=512, cutoffs=(10, 20), mesh="data=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return worlds.small(tmp_path_factory.mktemp("data") / "small")


def config(folder, **fields):
    """A rate that is good and one that is none, for VBPR on features and on noise, and BPRMF."""
    tune = {"lr": (1e-5, 2e-2)}
    models = {
        "bprmf": common.study("bprmf", tune, compare={}, **LOOP),
        "vbpr": common.study("vbpr", tune, **LOOP),
    }
    default = dict(compare={"features": common.controls(("shuffle",))}, seeds=(3, 4))
    return common.sweep(models, dataset=str(folder), **(default | fields)).to_dict()


def only_bprmf(folder, tune, **fields):
    loop = LOOP | fields.pop("loop", {})
    models = {"bprmf": common.study("bprmf", tune, **loop)}
    return common.sweep(models, dataset=str(folder), **fields).to_dict()


def plan(sweep, workdir):
    resources = Resources(sweep)
    cells, _ = resources.resolve(space.cells(sweep))
    return Plan(sweep, cells, resources, workdir)


def lines(workdir):
    return [json.loads(line) for line in (workdir / "ledger.jsonl").read_text().splitlines()]


def counts(workdir):
    return Counter(line["event"] for line in lines(workdir))


@pytest.fixture(scope="module")
def swept(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("sweep")
    worker.run(plan(config(folder), workdir))
    return workdir


def test_a_sweep_and_what_it_writes(swept):
    assert counts(swept) == {"done": 9, "chosen": 3, "tested": 6}
    ledger = Ledger(swept)
    for cell, line in ledger.chosen.items():
        tuned = [one for one in ledger.done.values() if one["cell"] == cell and one["seed"] == 3]
        assert len(tuned) == 2
        assert line["valid"] == max(one["valid"] for one in tuned)
        repeats = [one for one in ledger.tested.values() if one["cell"] == cell]
        assert [one["seed"] for one in repeats] == [3, 4]
        assert all(one["point"] == line["point"] for one in repeats)
    assert {path.name for path in (swept / "runs").iterdir()} == set(ledger.tested)
    assert {path.name for path in (swept / "weights").iterdir()} == set(ledger.tested)
    assert not list((swept / "leases").iterdir())
    assert not list(swept.glob("packs/*/checkpoints"))
    for line in ledger.done.values():
        record = [
            json.loads(text)
            for text in (swept / "packs" / line["pack"] / "metrics.jsonl").read_text().splitlines()
        ]
        if line["of"] > 1:
            assert max(one["values"][line["place"]] for one in record) == line["valid"]


def test_every_trial_is_what_it_is_alone(swept, tmp_path):
    """On a CPU bit for bit, whether it trained beside another or was repeated with another seed."""
    ledger = Ledger(swept)
    for trial, line in ledger.tested.items():
        found = files.read_json(swept / "runs" / trial / "results.json")
        alone = train.run(found["config"], tmp_path / trial)
        for split in ("valid", "test"):
            assert found[split] == alone[split]
        assert ledger.done[trial]["best_epoch"] == alone["best_epoch"]
        assert found["seed"] == line["seed"]


def test_done_is_done(folder, swept):
    before = (swept / "ledger.jsonl").read_bytes()
    worker.run(plan(config(folder), swept))
    assert (swept / "ledger.jsonl").read_bytes() == before


def test_the_test_split_is_for_what_was_chosen_and_once(folder, swept):
    made, ledger = plan(config(folder), swept), Ledger(swept)
    cell = next(cell for cell in made.cells if cell.name == "bprmf")
    chosen = ledger.chosen["bprmf"]["point"]
    other = next(point for point in space.grid(cell) if point != chosen)
    for point, words in ((other, "may not be tested"), (chosen, "was read for trial")):
        trial = space.trial(cell, point, 3, made.resources.hashes)
        with pytest.raises(InputError, match=words):
            final_test.read_test(made, [trial], batching.Packer(made.resources), ledger)


def test_a_choice_is_not_changed_after_its_test(folder, swept, tmp_path):
    """A grid may grow; if validation then prefers another point, the test is spent."""
    workdir = tmp_path / "sweep"
    shutil.copytree(swept, workdir)
    worse = config(folder)
    worse["models"]["bprmf"]["tune"] = {"lr": (1e-5, 2e-2, 1e-6)}
    worker.run(plan(worse, workdir))
    assert counts(workdir) == {"done": 10, "chosen": 3, "tested": 6}
    event = lines(workdir)[0] | {"cell": "bprmf", "valid": 0.99}
    better = config(folder)
    better["models"]["bprmf"]["tune"] = {"lr": (1e-5, 2e-2, 1e-7)}
    made = plan(better, workdir)
    cell = next(cell for cell in made.cells if cell.name == "bprmf")
    trial = space.trial(cell, {"lr": 1e-7}, 3, made.resources.hashes)
    Ledger(workdir).append([event | {"trial": trial.id, "point": trial.point}])
    with pytest.raises(InputError, match=r"bprmf: validation now prefers .*1e-07.*new --workdir"):
        worker.run(made)


def start(workdir, folder, *flags):
    command = [sys.executable, str(ROOT / "scripts" / "sweep.py")]
    command += [f"--config={Path(__file__).with_name('killed.py')}", f"--workdir={workdir}"]
    command += [f"--config.dataset={folder}", *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_killed_and_shared_nothing_is_lost_or_done_twice(folder, swept, tmp_path):
    """SIGKILL while a pack trains; then two processes finish it together."""
    workdir = tmp_path / "sweep"
    first = start(workdir, folder)
    deadline = time.monotonic() + 120
    while not list(workdir.glob("packs/*/checkpoints/[0-9]*")):
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert not (workdir / "ledger.jsonl").exists() or counts(workdir)["tested"] < 6
    together = [start(workdir, folder, "--max_trials_per_program=1") for _ in range(2)]
    for process in together:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    assert counts(workdir) == counts(swept)
    mine, undisturbed = Ledger(workdir), Ledger(swept)
    assert {trial: line["valid"] for trial, line in mine.done.items()} == {
        trial: line["valid"] for trial, line in undisturbed.done.items()
    }
    for trial in undisturbed.tested:
        one, other = (
            files.read_json(at / "runs" / trial / "results.json") for at in (workdir, swept)
        )
        assert one["test"] == other["test"]


def test_only_what_a_value_breaks_fails(folder, tmp_path, capsys):
    sweep = only_bprmf(folder, {"model": {"dim": (-4, 8)}}, loop={"epochs": 1})
    worker.run(plan(sweep, tmp_path))
    ledger = Ledger(tmp_path)
    (failed,) = ledger.failed.values()
    assert failed["point"] == {"model.dim": -4}
    assert "negative" in failed["error"]
    assert [line["point"] for line in ledger.tested.values()] == [{"model.dim": 8}]
    worker.run(plan(sweep, tmp_path))
    assert counts(tmp_path)["failed"] == 1
    worker.run(plan(sweep, tmp_path), retry_failed=True)
    assert counts(tmp_path) == {"failed": 2, "done": 1, "chosen": 1, "tested": 1}


def test_a_store_that_a_model_rejects_fails_alone(folder, tmp_path):
    """Stores of one shape share a program; one of zeros does not stop the others."""
    data, url = dataset.load(folder), str(tmp_path / "zeros")
    rows = np.zeros(store.open_store(str(folder / "features" / "visual")).shape, np.float32)
    store.write_array(url, rows, item_ids=data.item_ids, encoder="none")
    levels = {"real": "v=visual", "shuffled": "v=visual~shuffle", "zeros": "v=zeros"}
    named = f"visual={folder}/features/visual,zeros={url}"
    sweep = config(folder, compare={"features": common.levels(levels)}, stores=named, seeds=(0,))
    sweep["models"].pop("bprmf")
    sweep["models"]["vbpr"]["config"]["mesh"] = "trial=2"
    worker.run(plan(sweep, tmp_path / "sweep"))
    ledger = Ledger(tmp_path / "sweep")
    assert {line["cell"] for line in ledger.failed.values()} == {"vbpr features=zeros"}
    assert all("are all zero" in line["error"] for line in ledger.failed.values())
    assert counts(tmp_path / "sweep") == {"done": 4, "failed": 2, "chosen": 2, "tested": 2}


def test_features_that_do_not_fit_together_train_apart(folder, swept, tmp_path, monkeypatch):
    sweep = config(folder)
    sweep["models"]["vbpr"]["config"]["mesh"] = "trial=2"
    monkeypatch.setattr(batching.meshes, "free_memory", lambda mesh: 10**4)
    worker.run(plan(sweep, tmp_path), most=2)
    packs = {line["pack"]: line["cell"] for line in Ledger(tmp_path).done.values()}
    assert len(packs) > len(set(packs.values()))
    mine, theirs = (Ledger(at).done for at in (tmp_path, swept))
    assert {k: v["valid"] for k, v in mine.items()} == {k: v["valid"] for k, v in theirs.items()}


def test_on_a_mesh_that_splits_trials(folder, swept, tmp_path):
    """Three devices and packs of two: the third has a copy, whose result nobody takes."""
    sweep = config(folder)
    for model in sweep["models"].values():
        model["config"]["mesh"] = "trial=3"
    worker.run(plan(sweep, tmp_path))
    mine, theirs = (Ledger(at) for at in (tmp_path, swept))
    assert {k: v["valid"] for k, v in mine.done.items()} == {
        k: v["valid"] for k, v in theirs.done.items()
    }
    assert counts(tmp_path) == counts(swept)


def test_a_choice_after_the_test_of_a_cell_that_shares_trials(folder, tmp_path):
    """Two levels that make the same config: the test of one is the test of the other."""
    levels = {"plain": {"lr_decay": (1.0, 50.0)}, "same": {"lr_decay": (1.0, 50.0)}}
    sweep = only_bprmf(folder, {"lr": (1e-2, 2e-2)}, loop={"epochs": 1}, compare={"decay": levels})
    made, ledger = plan(sweep, tmp_path), Ledger(tmp_path)
    worker.run(made)
    assert counts(tmp_path) == {"done": 2, "chosen": 2, "tested": 1}
    ledger = Ledger(tmp_path)
    (tested,) = ledger.tested.values()
    other = next(cell for cell in made.cells if cell.name != tested["cell"])
    sweep["models"]["bprmf"]["tune"] = {"lr": (1e-2, 2e-2, 3e-2)}
    again = plan(sweep, tmp_path)
    cell = next(cell for cell in again.cells if cell.name == other.name)
    better = space.trial(cell, {"lr": 3e-2}, 0, again.resources.hashes)
    first = next(iter(ledger.done.values()))
    line = first | {"event": "done", "valid": 0.99, "trial": better.id, "point": better.point}
    ledger.append([line | {"cell": other.name}])
    with pytest.raises(InputError, match="validation now prefers"):
        worker.run(again)


def test_all_points_fail(folder, tmp_path):
    worker.run(plan(only_bprmf(folder, {"model": {"dim": (-4,)}}, seeds=(0, 1)), tmp_path))
    assert counts(tmp_path) == {"failed": 1}


def test_what_diverges_is_a_failure_of_its_own(folder, tmp_path):
    sweep = only_bprmf(folder, {"lr": (1e-2, 1e30)}, loop={"eval_every": 4})
    worker.run(plan(sweep, tmp_path))
    assert counts(tmp_path) == {"done": 1, "failed": 1, "chosen": 1, "tested": 1}
    (failed,) = Ledger(tmp_path).failed.values()
    assert failed["point"] == {"lr": 1e30}
    assert failed["error"].startswith("diverged in epoch ")


def test_other_interactions_under_an_old_workdir(folder, swept, tmp_path):
    workdir, data = tmp_path / "sweep", tmp_path / "data"
    sweep = only_bprmf(data, {"lr": (1e-2,)}, loop={"epochs": 1})
    shutil.copytree(folder, data)
    worker.run(plan(sweep, workdir))
    shutil.rmtree(data)
    worlds.small(data, users=150)
    with pytest.raises(InputError, match=r"data held other interactions .* new --workdir"):
        worker.run(plan(sweep, workdir))


def test_a_level_without_its_store_is_left_out(folder):
    levels = {
        "there": {"features": "visual=visual"},
        "lost": {"features": "visual=clip_image~shuffle"},
    }
    sweep = config(folder, compare={"features": levels})
    resources = Resources(sweep)
    cells, without = resources.resolve(space.cells(sweep))
    assert [cell.name for cell in cells] == ["bprmf", "vbpr features=there"]
    assert without == {"vbpr features=lost": "clip_image"}
    sweep["models"].pop("bprmf")
    sweep["compare"]["features"].pop("there")
    with pytest.raises(InputError, match=r"no cell has its stores; .* lacks 'clip_image'"):
        Resources(sweep).resolve(space.cells(sweep))


def test_the_best_of_every_cell_is_kept_where_cells_tie():
    """Two cells of one pack may reach the same value; each keeps its own best."""
    trials = [
        space.Trial(str(n), cell, {"lr": float(n)}, {})
        for n, cell in enumerate(("a", "a", "b", "b", "c"))
    ]
    values = [0.2, 0.3, 0.3, 0.3, None]
    ledger = types.SimpleNamespace(chosen={"b": {"point": {"lr": 3.0}}})
    assert worker._worth_keeping(trials, values, ledger) == [1, 2, 3]


def test_lost_weights_are_trained_again(folder, tmp_path):
    sweep = only_bprmf(folder, {"lr": (1e-2, 2e-2)}, loop={"epochs": 1})
    made, ledger = plan(sweep, tmp_path), Ledger(tmp_path)
    worker.run(made)
    events = [line for line in lines(tmp_path) if line["event"] != "tested"]
    (tmp_path / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in events))
    shutil.rmtree(tmp_path / "weights")
    ledger = Ledger(tmp_path)
    left = survey(made, ledger)
    assert [trial.id for trial in left.train] == [ledger.chosen["bprmf"]["trial"]]
    worker.run(made)
    assert counts(tmp_path)["tested"] == 1


def test_tpe_asks_in_batches_and_loses_none(folder, tmp_path):
    pytest.importorskip("optuna")
    tune = {"lr": common.between(1e-4, 1e-1, log=True), "model": {"dim": (4, 8)}}
    sweep = only_bprmf(
        folder, tune, search="tpe", trials=7, batch=3, loop={"epochs": 1}, seeds=(0, 1)
    )
    made, ledger = plan(sweep, tmp_path), Ledger(tmp_path)
    asked = [trial.id for trial in survey(made, ledger).train]
    assert len(asked) == 3
    assert [trial.id for trial in survey(plan(sweep, tmp_path), ledger).train] == asked  # a kill
    worker.run(made)
    ledger = Ledger(tmp_path)
    assert set(asked) <= set(ledger.done)
    tuned = [line for line in ledger.done.values() if line["seed"] == 0]
    assert len(tuned) == 7
    assert len({line["point"]["lr"] for line in tuned}) == 7
    assert counts(tmp_path) == {"done": 8, "chosen": 1, "tested": 2}
    worker.run(plan(sweep, tmp_path))
    assert counts(tmp_path) == {"done": 8, "chosen": 1, "tested": 2}
