"""Axes to cells, points, trials and programs."""

import importlib
import inspect
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import common
from mmjax.core.errors import InputError
from mmjax.sweep import batching, space

ROOT = Path(__file__).resolve().parents[2]
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


def test_one_models_axes_are_its_own():
    tune = {"lr": LRS}
    made = common.sweep({name: common.study(name, tune) for name in ("bprmf", "lightgcn")})
    made.models.bprmf.tune.lr = (1.0,)
    assert made.models.lightgcn.tune.lr == LRS


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
    "no such search": ({"search": "bayes"}, "search='bayes'; there are grid, random, tpe"),
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


def test_a_point_is_as_the_ledger_gives_it_back():
    (cell,) = [cell for cell in space.cells(sweep()) if cell.name == "bprmf"]
    trial = space.trial(cell, {"lr_decay": (0.96, 50.0)}, 0, hashes)
    assert trial.point == json.loads(json.dumps(trial.point)) == {"lr_decay": [0.96, 50.0]}
    assert trial.config["lr_decay"] == (0.96, 50.0)


def program(trial):
    return space.program(trial.config)[0]


def test_what_shares_a_program():
    """Rates, weights and seeds do; widths and, by their names, features do not."""
    found = space.cells(sweep(tune={"lr": LRS, "model": {"l_w": WEIGHTS, "dim": (8, 16)}}))
    groups = batching.by_program([*trials(found), *trials(found)], program)
    assert sorted(len(group) for group in groups) == [6] * 6  # 3 cells by 2 widths
    for group in groups:
        assert len({(trial.cell, trial.config["model"]["dim"]) for trial in group}) == 1
    seeds = [space.trial(found[0], {}, seed, hashes) for seed in (0, 1)]
    assert len(batching.by_program(seeds, program)) == 1


def test_what_nothing_trains_shares_no_program():
    models = {"ease": common.study("ease", {"model": {"l2": (1.0, 2.0)}})}
    found = space.cells(common.sweep(models, dataset="data").to_dict())
    assert [len(group) for group in batching.by_program(trials(found), program)] == [1, 1]


SWEEPS = sorted(path.stem for path in (ROOT / "configs" / "sweeps").glob("*.py"))
PAPERS = {  # model -> points of a cell, where the paper says it
    "noise_controls": {"vbpr": 30, "bm3": 30, "freedom": 30, "lattice": 30},
    "extractors": {"vbpr": 30, "lattice": 30},
    "ducho_elliot": {
        **dict.fromkeys(("itemknn", "bprmf", "ngcf", "lightgcn", "sgl", "simgcl"), 10),
        **dict.fromkeys(("vbpr", "ngcfm", "grcn", "lattice", "bm3", "freedom"), 10),
    },
    "missing": {"vbpr": 10, "bprmf": 10},
    "formalizing": {"mmgcn": 10, "bm3": 10},
    "prompts": {"vbpr": 10, "bm3": 10},
}


@pytest.mark.parametrize("name", SWEEPS)
def test_the_papers_sweeps_can_be_laid_out(name):
    module = importlib.import_module(f"configs.sweeps.{name}")
    assert "scripts/sweep.py" in module.__doc__
    for arg in re.findall(r"(\w+)=", inspect.getsource(module).rsplit("preset(", 1)[1]):
        found = space.cells(module.get_config("" if arg == "default" else arg).to_dict())
        assert len({cell.name for cell in found}) == len(found)
        for cell in found:
            assert importlib.import_module(f"configs.{cell.config['recommender']}")
            if arg == "default" and cell.search == "grid" and cell.model in PAPERS[name]:
                assert len(space.grid(cell)) == PAPERS[name][cell.model]
        assert arg != "default" or {cell.model for cell in found} >= PAPERS[name].keys()


def test_the_papers_sweeps_run_the_papers_models():
    """Check that each sweep has what its own paper's fork of the toolbox has."""

    def study(sweep: str, model: str) -> dict:
        module = importlib.import_module(f"configs.sweeps.{sweep}")
        return module.get_config("").to_dict()["models"][model]

    def options(sweep: str, model: str) -> dict:
        return study(sweep, model)["config"]["model"]

    for sweep in ("noise_controls", "extractors", "ducho_elliot", "formalizing", "prompts"):
        assert options(sweep, "vbpr")["content_init"] == "normal", sweep
    assert options("missing", "vbpr")["content_init"] == "xavier_uniform"
    assert options("missing", "ngcf")["combine"] == "mean"
    assert options("ducho_elliot", "ngcf")["combine"] == "concat"
    for sweep in ("missing", "ducho_elliot"):
        assert options(sweep, "bprmf")["bias"] is False, sweep
    for sweep in ("noise_controls", "extractors"):
        assert options(sweep, "bprmf")["bias"] is True
        searched = study(sweep, "bprmf")["tune"]["model"]["l_b"]
        assert searched == {"low": 1e-5, "high": 0.1, "log": True, "integer": False}
        assert options(sweep, "lattice")["top_k"] == 10
        assert study(sweep, "lattice")["config"]["eval_every"] == 200
    assert options("ducho_elliot", "lattice")["top_k"] == 20
