"""Epochs in parts: the numbers of whole ones, and saved in their middle they go on bit for bit."""

import json

import numpy as np
import pytest
from support import worlds
from support.fitting import fit, same

from configs import bprmf, freedom, lattice, vbpr
from mmjax.core import files
from mmjax.core.errors import InputError, Preempted
from mmjax.data import dataset
from mmjax.parallel import distributed
from mmjax.training import ensemble, experiment, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return worlds.small(tmp_path_factory.mktemp("data") / "small")


def config(module, folder, **change):
    made = module.get_config("")
    made.update({"dataset": str(folder), "epochs": 3, "batch_size": 640, "mesh": "data=1"})
    made.update({"cutoffs": (10, 20), "lr": 1e-2, **change})
    return made


def losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def users(workdir):
    with np.load(workdir / "per_user.npz") as kept:
        return dict(kept)


class Ends:
    """Asks to end when it was looked at so often."""

    def __init__(self, monkeypatch):
        self.looks, self.last = 0, None
        monkeypatch.setattr(distributed.Notice, "given", lambda notice: self._given())

    def _given(self):
        self.looks += 1
        return self.looks == self.last

    def after(self, looks):
        self.looks, self.last = 0, looks


@pytest.mark.slow
@pytest.mark.parametrize("module", [vbpr, freedom, lattice])
def test_parts_are_the_whole_wherever_it_ends(module, folder, tmp_path, monkeypatch):
    """FREEDOM's graph is drawn and LATTICE's built at an epoch's start, for all its parts."""
    ends = Ends(monkeypatch)
    whole = train.run(config(module, folder), tmp_path / "whole")
    made = config(module, folder, part_steps=4)
    trials = experiment.trials(
        made, dataset.load(folder), experiment.features(made, dataset.load(folder))
    )
    assert [len(part) for part in trials.parts()] == [4, trials.steps - 4]
    undisturbed = train.run(made, tmp_path / "parts")
    for split in ("valid", "test"):
        assert undisturbed[split] == whole[split]
    for looks in (1, 2, 3):
        ends.after(looks)
        run = tmp_path / f"ended-{looks}"
        with pytest.raises(Preempted, match="step 4 of" if looks % 2 else "after epoch 1 of 3"):
            train.run(made, run)
        done = looks // 2 * trials.steps + looks % 2 * 4
        assert files.exists(run / "checkpoints" / str(done))
        if looks == 3:  # in the middle of the second epoch the best is the first's
            assert train.evaluate(run, "valid", {}).overall["recall@20"] > 0
        ends.after(None)
        again = config(module, folder, part_steps=(4, 0, 3)[looks - 1])  # may change meanwhile
        assert train.run(again, run)["test"] == whole["test"]
        assert losses(run) == losses(tmp_path / "parts") == losses(tmp_path / "whole")
        same(users(run), users(tmp_path / "whole"))


@pytest.mark.slow
def test_trials_that_have_stopped_are_no_part_of_it(folder, tmp_path, monkeypatch):
    """Two of four stop after two epochs; the other two go on alone, and end in a middle."""
    ends = Ends(monkeypatch)
    made = config(bprmf, folder, epochs=5, patience=1, mesh="trial=2", part_steps=2)
    points = [{"lr": rate} for rate in (0.0, 0.05, 0.0, 0.03)]
    whole, progress, _ = fit(made, points, tmp_path / "whole")
    assert progress["best_epoch"][::2] == [1, 1]
    assert max(progress["best_epoch"]) > 2
    parts = ends.looks // progress["epoch"]
    ends.after(2 * parts + 2)  # two parts of the third epoch are done
    with pytest.raises(Preempted, match=r"step 4 of .* of epoch 3"):
        fit(made, points, tmp_path / "ended")
    ends.after(None)
    again, told, _ = fit(made, points, tmp_path / "ended")
    assert told == progress
    for trial in range(4):
        same(ensemble.pick(again, trial), ensemble.pick(whole, trial))


@pytest.mark.slow
def test_another_mesh_goes_on_from_the_middle(folder, tmp_path, monkeypatch):
    ends = Ends(monkeypatch)
    made = config(freedom, folder, part_steps=4)
    whole = train.run(made, tmp_path / "whole")
    ends.after(3)
    with pytest.raises(Preempted, match="step 4 of"):
        train.run(config(freedom, folder, part_steps=4, mesh="data=2,model=2"), tmp_path / "run")
    ends.after(None)
    found = train.run(made, tmp_path / "run")
    for name, value in whole["test"].items():
        assert found["test"][name] == pytest.approx(value, abs=1e-6)


@pytest.mark.slow
def test_what_diverges_is_told_by_its_step(folder, tmp_path):
    made = config(bprmf, folder, part_steps=2, lr=1e30)
    with pytest.raises(InputError, match=r"step \d of \d of epoch 1"):
        train.run(made, tmp_path)


def test_a_negative_number_of_steps(folder, tmp_path):
    with pytest.raises(InputError, match="part_steps=-1 must be at least 0"):
        train.run(config(bprmf, folder, part_steps=-1), tmp_path)
