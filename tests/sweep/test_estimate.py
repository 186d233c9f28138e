"""What a sweep will take: programs and trials counted, seconds and bytes that add up."""

import jax
import numpy as np
import pytest
from support import worlds

from configs import common
from mmjax.data import dataset
from mmjax.sweep import batching, estimate, space
from mmjax.sweep.ledger import Ledger
from mmjax.sweep.plan import Plan, survey
from mmjax.sweep.resources import Resources
from mmjax.training import experiment

LOOP = dict(epochs=3, batch_size=512, cutoffs=(10, 20), mesh="data=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return worlds.small(tmp_path_factory.mktemp("data") / "small")


@pytest.fixture(scope="module")
def plan(folder, tmp_path_factory):
    tune = {"lr": (1e-2, 2e-2), "model": {"dim": (4, 8)}}
    models = {
        "bprmf": common.study("bprmf", tune, compare={}, **LOOP),
        "vbpr": common.study("vbpr", {"lr": (1e-2, 2e-2)}, **LOOP),
        "mostpop": common.study("mostpop", compare={}, cutoffs=(10, 20)),
    }
    levels = common.controls(("shuffle",))
    sweep = common.sweep(
        models, dataset=str(folder), compare={"features": levels}, seeds=(0, 1)
    ).to_dict()
    resources = Resources(sweep)
    cells, _ = resources.resolve(space.cells(sweep))
    return Plan(sweep, cells, resources, tmp_path_factory.mktemp("sweep") / "sweep")


@pytest.mark.slow
def test_programs_trials_seconds_and_bytes(plan):
    found = estimate.estimate(plan, most=2)
    assert not plan.workdir.exists()
    by_cell = {}
    for one in found:
        by_cell.setdefault(one.cells[0], []).append(one)
    assert {cell: sorted(one.trials for one in each) for cell, each in by_cell.items()} == {
        "bprmf": [2, 3],  # a width each, and the repeat of one of them
        "vbpr features=real": [3],
        "vbpr features=shuffle": [3],
        "mostpop": [1, 1],  # nothing is traced, so that another seed is another program
    }
    real, shuffled = by_cell["vbpr features=real"][0], by_cell["vbpr features=shuffle"][0]
    assert real[2:7] == shuffled[2:7]  # measured once
    for one in found:
        assert one.at_once == min(2, one.trials)
        epochs = LOOP["epochs"] if one.epoch_s is not None else 1
        each = (one.epoch_s or 0) * epochs + one.eval_s * epochs
        assert one.total_s == pytest.approx(one.compile_s + each * one.trials)
    assert by_cell["mostpop"][0].epoch_s is None
    assert real.memory > by_cell["bprmf"][0].memory > 0
    text = estimate.table(found, 10**9)
    assert text.splitlines()[-1].startswith(f"{len(found)} programs, 13 trials: at most ")
    assert survey(plan, Ledger(plan.workdir)).trials == 13


def test_features_share_a_program_where_trials_run_side_by_side(plan, monkeypatch):
    monkeypatch.setattr(batching.meshes, "is_cpu", lambda mesh: False)
    packer = batching.Packer(plan.resources)
    groups = packer.groups(estimate.every_trial(plan))
    cells = [sorted({trial.cell for trial in group}) for group in groups]
    assert ["vbpr features=real", "vbpr features=shuffle"] in cells


@pytest.mark.slow
def test_the_first_steps_of_an_epoch_are_those_of_the_epoch(folder):
    config = common.study("bprmf", **LOOP)["config"] | {"dataset": str(folder)}
    trials = experiment.trials(config, dataset.load(folder), {}, [{"lr": 1e-2}, {"lr": 2e-2}])
    _, few = trials.epoch(3)(*trials.arguments(trials.init()))
    _, losses = trials.epoch()(*trials.arguments(trials.init()))
    assert few.shape == (2, 3)
    np.testing.assert_array_equal(few, losses[:, :3])


@pytest.mark.slow
def test_halves_until_it_fits(folder, monkeypatch):
    config = common.study("bprmf", **LOOP)["config"] | {"dataset": str(folder)}
    data = dataset.load(folder)

    def build(points):
        return experiment.trials(config, data, {}, points)

    points = [{"seed": n} for n in range(7)]
    one, four = batching.needed(build(points[:1])), batching.needed(build(points[:4]))
    assert four > 2 * one
    state = jax.eval_shape(build(points[:4]).init)
    assert four > 2 * batching.nbytes(state)
    for free, fits in ((four / batching.SHARE, 4), (one / batching.SHARE, 1)):
        monkeypatch.setattr(batching.meshes, "free_memory", lambda mesh, free=free: free)
        assert batching.most_at_once(build, points) == fits


def test_durations_for_people():
    assert [estimate.duration(s) for s in (42.4, 420, 12_600)] == ["42 s", "7 min", "3.5 h"]
