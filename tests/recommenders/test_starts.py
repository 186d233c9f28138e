"""Parameters start as the authors' code starts them: mean, deviation, bounds and biases."""

import importlib
import pkgutil

import jax
import numpy as np
import pytest
from recommenders import test_authors, test_parity
from support import starts
from support.dumps import Case, _flat

import configs
from mmjax.core.errors import InputError
from mmjax.recommenders import registry
from mmjax.recommenders.layers import initializers

DUMPS = test_parity.DUMPS | test_authors.DUMPS


@pytest.mark.slow
@pytest.mark.parametrize(("model", "preset"), starts.cases())
def test_each_parameter_of_each_preset(model, preset):
    world = starts.catalog()
    every, features = starts.start(model, preset), starts.given(world)
    _, kinds = starts.expected(model, preset)
    wrong = {
        name: faults
        for name, _, _, faults in starts.check(every, kinds, features, sum(world.shape))
        if faults
    }
    assert not wrong


def test_the_table_has_every_trained_model_and_preset():
    for file in pkgutil.iter_modules(configs.__path__):
        if file.name in ("common", "sweeps", "extract"):
            continue
        module = importlib.import_module(f"configs.{file.name}")
        config = module.get_config()
        if not hasattr(registry.find(config.recommender), "loss"):
            continue
        with pytest.raises((ValueError, InputError), match="there are") as refused:
            module.get_config("nothing")
        names = str(refused.value).partition("there are ")[2].split(", ")
        assert set(names) == set(starts.presets(starts.AUTHORS[file.name])), file.name


@pytest.mark.slow
@pytest.mark.parametrize("name", DUMPS)
def test_the_dumps_start_as_the_table_says(request, parity, name):
    """The table is what their code did: their starting values obey it too."""
    folder = request.getfixturevalue("authors") if name in test_authors.DUMPS else parity
    if not (folder / f"{name}.npz").exists():
        pytest.skip(f"no {name} among the dumps of {folder}")
    preset = "elliot" if name.startswith("elliot") else "mmrec"
    case = Case(folder, name, DUMPS[name], np.float32)
    _, kinds = starts.expected(case.dump.name, preset)
    every = {path: np.asarray(case.theirs("p0", path)) for path in case.dump.params}
    every |= {path: np.asarray(value) for path, value in _flat(case.drawn).items()}
    every.pop("seed", None)
    features = [np.asarray(case.ref[f"{m}_feat"], np.float32) for m in case.dump.modalities]
    features += [np.concatenate(features, axis=1)]
    nodes = case.meta["n_users"] + case.meta["n_items"]
    wrong = {
        path: faults
        for path, _, value, faults in starts.check(every, kinds, features, nodes)
        if faults and value.size
    }
    assert not wrong


def test_what_the_test_would_see():
    """Zero biases, another deviation and another law are found."""
    uniform, normal = (
        np.asarray(initializers.init_table(kind, jax.random.key(0), (64, 64)))
        for kind in ("xavier_uniform", "xavier_normal")
    )
    deviation = (2 / 128) ** 0.5
    law = 0.0, deviation, 3**0.5 * deviation
    assert not starts.faults(uniform, *law)
    assert starts.faults(normal, *law)
    assert not starts.faults(normal, 0.0, deviation, None)
    assert starts.faults(uniform, 0.0, deviation, None)
    assert starts.faults(uniform * 1.1, *law)
    bias = np.asarray(initializers.init_bias("linear", jax.random.key(0), 64, 64))
    assert not starts.faults(bias, 0.0, (1 / 192) ** 0.5, 1 / 8)
    assert starts.faults(bias * 0, 0.0, (1 / 192) ** 0.5, 1 / 8)
    kinds = {"user|item": starts.XU}
    world = {"user": uniform, "other": uniform}
    found = [faults for *_, faults in starts.check(world, kinds, [], 0) if faults]
    assert found == [["the authors' table does not have it"]]
