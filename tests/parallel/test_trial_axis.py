"""T trials split over devices, thinned out as they stop, on several catalogues: each as alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import worlds
from support.fitting import fit, same

from configs import bprmf, freedom, vbpr
from mmjax.core.errors import InputError
from mmjax.data import dataset
from mmjax.parallel import mesh as meshes
from mmjax.parallel import trial_axis
from mmjax.training import early_stopping, ensemble, experiment

RATES = (0.05, 0.0, 0.003, 0.0, 0.01, 0.0, 0.0, 0.0)  # five stop as soon as they may


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return worlds.small(tmp_path_factory.mktemp("data") / "small")


def config(module, folder, **changes):
    made = module.get_config().to_dict() | {"dataset": str(folder), "epochs": 8, "patience": 2}
    return made | {"batch_size": 512, "cutoffs": (10, 20), "mesh": "data=1"} | changes


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["trial=2", "trial=4,data=2", "trial=8"])
def test_trials_over_devices_equal_those_of_one(mesh, folder, tmp_path):
    """Bit for bit while the rows of a batch are not split; as they stop, fewer are computed."""
    points = [{"lr": rate, "seed": n} for n, rate in enumerate(RATES)]
    best, progress, trials = fit(config(bprmf, folder, mesh=mesh), points, tmp_path / "split")
    one, own, _ = fit(config(bprmf, folder), points, tmp_path / "one")
    assert progress["best_epoch"] == own["best_epoch"]
    assert max(width for _, width in trials.programs) == 8
    assert len(trials.programs) > 1 or mesh == "trial=8"
    assert all(width % int(mesh[6]) == 0 for _, width in trials.programs)
    shapes = jax.tree.leaves(early_stopping.weights(trials.shapes()))
    for x, shape in zip(jax.tree.leaves(best), shapes, strict=True):
        assert x.sharding.is_equivalent_to(shape.sharding, x.ndim)
    if "data" in mesh:
        np.testing.assert_allclose(progress["best"], own["best"], atol=1e-6)
    else:
        assert progress == own
        same(best, one)


@pytest.mark.slow
def test_a_run_resumes_on_a_mesh_that_splits_trials(folder, tmp_path):
    made, points = config(bprmf, folder, mesh="trial=2"), [{"lr": r} for r in RATES[:4]]
    fit(made | {"epochs": 3}, points, tmp_path / "cut")
    best, progress, _ = fit(made, points, tmp_path / "cut")
    whole, undisturbed, _ = fit(made, points, tmp_path / "whole")
    assert progress == undisturbed
    same(best, whole)


def test_a_mesh_that_cannot_split_the_trials(folder):
    made = config(bprmf, folder, mesh="trial=2")
    with pytest.raises(InputError, match="over 2 devices and there are 1; a single run needs"):
        experiment.trials(made, dataset.load(folder), {})


@pytest.mark.slow
def test_side_by_side_those_that_stopped_are_left_out(folder, tmp_path, monkeypatch):
    """As an accelerator computes them, all at once: eight, then the few that go on."""
    points = [{"lr": rate} for rate in (*RATES[:4], 0.0, 0.0, 0.0, 0.0)]
    made = config(vbpr, folder, epochs=16)
    one, own, alone = fit(made, points, tmp_path / "in turn")
    assert set(alone.programs) == {("epoch", 8)}
    monkeypatch.setattr(meshes, "is_cpu", lambda mesh: False)
    best, progress, trials = fit(made, points, tmp_path / "abreast")
    widths = {width for _, width in trials.programs}
    assert 8 in widths
    assert {1, 2} & widths
    np.testing.assert_allclose(progress["best"][1], own["best"][1], atol=1e-6)
    assert [b == 1 for b in progress["best_epoch"]] == [b == 1 for b in own["best_epoch"]]
    for mine, theirs in zip(*map(jax.tree.leaves, (best, one)), strict=True):
        np.testing.assert_allclose(mine[1], theirs[1], rtol=1e-5)  # it never moved


@given(st.lists(st.booleans(), min_size=1, max_size=8).filter(any), st.sampled_from((1, 2, 4)))
def test_places(active, devices):
    active = active * devices
    mesh = meshes.make(f"trial={devices}")
    chosen = trial_axis.trials_to_run(active, mesh)
    assert len(set(chosen)) == len(chosen)
    assert set(np.flatnonzero(active)) <= set(chosen)
    assert len(chosen) % devices == 0
    if devices == 1:
        assert len(chosen) == len(active)
    if len(chosen) < len(active):
        counts = [sum(active[n] for n in part) for part in np.split(chosen, devices)]
        assert max(counts) - min(counts) <= 1


@pytest.mark.slow
def test_features_as_an_axis_of_one_program(folder, tmp_path):
    """Trials on a store, on its shuffled rows and on noise of its shape: each as alone."""
    made, data = config(vbpr, folder, epochs=3), dataset.load(folder)
    stores = [
        experiment.features(made | {"features": f"visual={one}"}, data) for one in three(folder)
    ]
    points, variant = [{"lr": 0.01}, {"lr": 0.02}, {"lr": 0.01}], [2, 0, 1]
    together, progress, trials = fit(made, points, tmp_path / "together", stores, variant)
    assert len(trials.varied) == 1
    for trial, point in enumerate(points):
        one, own, alone = fit(made, [point], tmp_path / str(trial), stores[variant[trial]])
        assert not alone.varied
        assert own["best"][0] == progress["best"][trial]
        same(ensemble.pick(together, trial), ensemble.pick(one, 0))
    assert len({*progress["best"]}) == 3


def three(folder):
    """Stores of one shape."""
    from mmjax.features import expressions

    data = dataset.load(folder)
    named = expressions.named("", folder)
    texts = ("visual", "visual~shuffle", "visual~gaussian")
    made = [expressions.resolve(f"v={text}", named, data, folder / "stores") for text in texts]
    return [expressions.pairs(text)["v"] for text in made]


@pytest.mark.slow
def test_features_that_start_what_is_trained(folder, tmp_path):
    """FREEDOM's trainable features and item graphs are of each trial's own catalogue."""
    made, data = config(freedom, folder, epochs=1), dataset.load(folder)
    stores = [
        experiment.features(made | {"features": f"visual={one}"}, data) for one in three(folder)
    ]
    together, _, _ = fit(made, [{}, {}], tmp_path / "together", stores[:2], [0, 1])
    for trial in range(2):
        one, _, _ = fit(made, [{}], tmp_path / str(trial), stores[trial])
        same(ensemble.pick(together, trial), ensemble.pick(one, 0))


def test_what_one_program_cannot_serve():
    a = {"x": jnp.zeros(3), "y": jnp.ones(2)}
    merged, varied = trial_axis.stack([a, {"x": jnp.zeros(3), "y": jnp.zeros(2)}])
    assert varied == {1}
    assert merged["y"].shape == (2, 2)
    assert merged["x"] is a["x"]
    same(trial_axis.choose(merged, varied, 1), {"x": jnp.zeros(3), "y": jnp.zeros(2)})
    for other in ({"x": jnp.zeros(4), "y": jnp.ones(2)}, {"x": jnp.zeros(3)}):
        with pytest.raises(trial_axis.Unlike):
            trial_axis.stack([a, other])


def test_catalogues_that_make_different_programs(folder):
    made, data = config(vbpr, folder), dataset.load(folder)
    both = [
        experiment.features(made | {"features": text}, data)
        for text in ("auto", f"visual={three(folder)[0]}")
    ]
    with pytest.raises(trial_axis.Unlike):
        experiment.trials(made, data, both, [{}, {}], [0, 1])


@pytest.mark.slow
def test_other_points_of_the_same_ensemble(folder):
    made, data = config(bprmf, folder), dataset.load(folder)
    trials = experiment.trials(made, data, {}, [{"lr": 0.1}, {"seed": 3}])
    other = trials.given(**experiment.seeds_and_hypers(made, [{"seed": 3}, {"lr": 0.1}]))
    assert other.programs is trials.programs
    first, second = trials.init(), other.init()
    same(ensemble.pick(first, 0), ensemble.pick(second, 1))
    same(ensemble.pick(first, 1), ensemble.pick(second, 0))
    with pytest.raises(ValueError, match="2 seeds but 1 values of lr"):
        trials.given([0, 1], {"lr": [0.1]})
