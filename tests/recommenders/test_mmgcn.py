"""MMGCN against method.md 7.5 written out with dense matrices, in float64."""

import jax
import numpy as np
import pytest
from flax import nnx
from support import formulas
from support.formulas import leaky, mean_squares, unit

from mmjax.core.errors import InputError
from mmjax.ops import graph
from mmjax.recommenders import mmgcn

CASES = {
    "paper": dict(latent={"visual": 8, "textual": 0}),
    "elliot": dict(latent={"visual": 8, "textual": 0}, concat=False, init="xavier_uniform"),
    "one modality": dict(latent=3, layers=2, untrained_tables=True),
}


def formula(catalog, l_w, layers=3, concat=True, **_):
    bought = formulas.matrix(catalog)
    n_users, n_items = bought.shape
    whole = np.block([[np.zeros((n_users,) * 2), bought], [bought.T, np.zeros((n_items,) * 2)]])
    mean = whole / np.maximum(whole.sum(1, keepdims=True), 1)

    def compute(p, batch):
        def linear(part, x):
            return x @ p[f"{part}.kernel"] + p[f"{part}.bias"]

        ids, total = np.vstack([p["user"], p["item"]]), 0
        for m, (name, features) in enumerate(catalog.features.items()):
            at = f"modalities.{m}"
            f = features
            if f"{at}.content.weight" in p:
                f = f @ p[f"{at}.content.weight"].T + p[f"{at}.content.bias"]
                f = f * catalog.present[name][:, None]
            x = unit(np.vstack([p[f"{at}.preference"], f]))
            for n in range(layers):
                layer = f"{at}.layers.{n}"
                h = leaky(mean @ (x @ p[f"{layer}.message.kernel"]))
                y = leaky(linear(f"{layer}.own", x)) + ids
                both = [h, y] if concat else [h]
                x = leaky(linear(f"{layer}.merge", np.hstack(both)) + (0 if concat else y))
            total = total + x / len(catalog.features)
        tables = total[:n_users], total[n_users:]
        items = np.concatenate([batch["pos"], batch["neg"]])
        squares = mean_squares(p["user"][batch["user"]]) + mean_squares(p["item"][items])
        squares += mean_squares(p["modalities.0.preference"])
        return formulas.bpr(*tables, batch) + l_w * squares, tables

    return compute


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_equals_the_formula(case):
    with jax.enable_x64(True):
        catalog = formulas.catalog(*(["textual"] if case == "one modality" else []))
        options = CASES[case]
        shaping = options | {"dim": 5}
        formulas.check(mmgcn.MMGCN, catalog, shaping, formula(catalog, 0.3, **options), l_w=0.3)


@pytest.mark.slow
def test_messages_of_few_users_to_many_items():
    """The other order of products, A x W with fewer users than items, is the same."""
    rng = np.random.default_rng(0)
    user, item = rng.integers(5, size=30), rng.integers(11, size=30)
    mean = {"norm": "left", "dtype": np.float64}
    with jax.enable_x64(True):
        layer = mmgcn.Layer(4, 3, concat=True, init="linear", merge_init="linear", rngs=nnx.Rngs(0))
        weight = np.asarray(layer.message.kernel[...])
        for shape, ends in (((5, 11), (user, item)), ((11, 5), (item, user))):
            x = rng.normal(size=(shape[1], 4))
            dense = np.zeros(shape)
            dense[ends] = 1
            dense /= np.maximum(dense.sum(1, keepdims=True), 1)
            found = layer.messages(graph.bipartite(*ends, shape, **mean), x)
            np.testing.assert_allclose(found, dense @ x @ weight, atol=1e-12)


def test_untrained_tables_are_no_parameters():
    options = dict(dim=4, untrained_tables=True)
    rng = np.random.default_rng(0)
    *_, params, drawn = formulas.build(mmgcn.MMGCN, formulas.catalog(), options, rng)
    assert set(params) == {"modalities"}
    assert {x.shape for x in jax.tree.leaves(drawn)} == {
        (formulas.USERS, 4),
        (formulas.ITEMS, 4),
        (formulas.USERS, mmgcn.LATENT),
    }


def test_options_that_cannot_be():
    catalog = formulas.catalog()
    with pytest.raises(InputError, match="did you mean 'visual'"):
        mmgcn.MMGCN(catalog, dim=4, latent={"visul": 8}, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="latent size -1 of 'visual' must be 0 or more"):
        mmgcn.MMGCN(catalog, dim=4, latent={"visual": -1}, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="layers=0 must be at least 1"):
        mmgcn.MMGCN(catalog, dim=4, layers=0, rngs=nnx.Rngs(0))
