"""Axes to cells, points, trials and programs."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import common
from mmjax.errors import InputError
from mmjax.sweep import packing, space

LRS, WEIGHTS = (1e-3, 1e-2), (0.1, 1.0, 10.0)


def sweep(**fields):
    tune = fields.pop("tune", {"lr": LRS, "model": {"l_w": WEIGHTS}})
    models = {"vbpr": common.study("vbpr", tune), "bprmf": common.study("bprmf", tune, compare={})}
    default = {"compare": {"features": common.controls(("gaussian",))}, "dataset": "data"}
    return common.sweep(models, **(default | fields)).to_dict()


def hashes(config):
    return {"data": "d", "features": config["features"]}


def trials(found):
    return [space.trial(cell, point, 0, hashes) for cell in found for point in space.grid(cell)]


def test_a_cell_for_each_model_and_level():
    cells = {cell.name: cell for cell in space.cells(sweep(seeds=(7, 8)))}
    assert set(cells) == {"bprmf", "vbpr features=real", "vbpr features=gaussian"}
    cell = cells["vbpr features=gaussian"]
    assert cell.levels == {"features": "gaussian"}
    assert cell.config["features"] == "*~gaussian"
    assert (cell.config["seed"], cell.config["dataset"]) == (7, "data")
    assert space.grid(cell) == [
        {"lr": lr, "model.l_w": weight} for lr, weight in itertools.product(LRS, WEIGHTS)
    ]


def test_factors_are_crossed():
    factors = {"features": common.controls(("shuffle",)), "width": {"8": {"model": {"dim": 8}}}}
    cells = space.cells(sweep(compare=factors))
    names = [cell.name for cell in cells if cell.model == "vbpr"]
    assert sorted(names) == ["vbpr features=real width=8", "vbpr features=shuffle width=8"]
    assert {cell.config["model"]["dim"] for cell in cells if cell.model == "vbpr"} == {8}


FAULTS = {
    "no such key": ({"tune": {"learning_rate": LRS}}, "no 'learning_rate'"),
    "no such option": ({"tune": {"model": {"l_v": LRS}}}, "no option 'l_v'; did you mean 'l_w'"),
    "no values": ({"tune": {"lr": ()}}, "lr is (), not a tuple"),
    "a number": ({"tune": {"lr": 1e-3}}, "lr is 0.001, not a tuple"),
    "a range in a grid": ({"tune": {"lr": common.between(1e-4, 1)}}, "a grid needs its values"),
    "the seed tuned": ({"tune": {"seed": (1, 2)}}, "leave it to seeds"),
    "a level on a tuned key": (
        {"compare": {"rate": {"fast": {"lr": 0.1}}}},
        "lr is changed by tune and by compare.rate",
    ),
    "two factors on a key": (
        {"compare": {"a": {"x": {"epochs": 1}}, "b": {"y": {"epochs": 2}}}},
        "epochs is changed by compare.a and by compare.b",
    ),
    "a level on the seed": ({"compare": {"a": {"x": {"seed": 1}}}}, "changed by seeds"),
    "a level of an unknown key": ({"compare": {"a": {"x": {"epoch": 1}}}}, "mean 'epochs'"),
    "no seed": ({"seeds": ()}, "at least one seed"),
    "no such search": ({"search": "bayes"}, "there are grid, random and tpe"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_in_one_sentence(fault):
    fields, words = FAULTS[fault]
    with pytest.raises(InputError) as caught:
        space.cells(sweep(**fields))
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_random_points_are_the_same_for_every_level_of_a_model():
    tune = {
        "lr": common.between(1e-5, 1.0, log=True),
        "model": {"dim": (8, 16), "l_w": common.between(0, 1)},
    }
    cells = space.cells(sweep(tune=tune, search="random"))
    points = {cell.name: space.drawn(cell, 200, seed=3) for cell in cells}
    assert points["vbpr features=real"] == points["vbpr features=gaussian"]
    assert points["vbpr features=real"] != points["bprmf"]
    lrs = np.array([point["lr"] for point in points["bprmf"]])
    assert lrs.min() >= 1e-5
    assert lrs.max() <= 1
    assert 0.3 < np.mean(lrs < 10**-2.5) < 0.7  # as many in the lower half of the logarithms
    assert {point["model.dim"] for point in points["bprmf"]} == {8, 16}
    assert space.drawn(cells[0], 5, seed=4) != space.drawn(cells[0], 5, seed=3)


@given(st.integers(1, 50), st.integers(0, 50), st.booleans(), st.integers(0, 99))
def test_integers_stay_between_their_ends(low, more, log, seed):
    axis = space.Range(low, low + more, log, True)
    value = axis.draw(np.random.default_rng(seed))
    assert isinstance(value, int)
    assert low <= value <= low + more


def test_what_a_trial_is():
    (cell,) = [cell for cell in space.cells(sweep()) if cell.name == "bprmf"]
    base = space.trial(cell, {"lr": 0.1}, 0, hashes)
    assert base.config["lr"] == 0.1
    moved = cell._replace(config=cell.config | {"dataset": "elsewhere", "mesh": "data=1"})
    assert space.trial(moved, {"lr": 0.1}, 0, hashes).id == base.id
    others = [
        space.trial(cell, {"lr": 0.2}, 0, hashes),
        space.trial(cell, {"lr": 0.1, "model.l_w": 3.0}, 0, hashes),
        space.trial(cell, {"lr": 0.1}, 1, hashes),
        space.trial(cell, {"lr": 0.1}, 0, lambda config: "other data"),
    ]
    assert len({base.id, *(other.id for other in others)}) == 5


def test_what_shares_a_program():
    """Rates, weights and seeds do; widths and features do not."""
    found = space.cells(sweep(tune={"lr": LRS, "model": {"l_w": WEIGHTS, "dim": (8, 16)}}))
    groups = packing.by_program([*trials(found), *trials(found)])
    assert sorted(len(group) for group in groups) == [6] * 6  # 3 cells by 2 widths
    for group in groups:
        assert len({(trial.cell, trial.config["model"]["dim"]) for trial in group}) == 1
    seeds = [space.trial(found[0], {}, seed, hashes) for seed in (0, 1)]
    assert len(packing.by_program(seeds)) == 1


def test_what_nothing_trains_shares_no_program():
    models = {"ease": common.study("ease", {"model": {"l2": (1.0, 2.0)}})}
    found = space.cells(common.sweep(models, dataset="data").to_dict())
    assert [len(group) for group in packing.by_program(trials(found))] == [1, 1]
