"""PGL against its equations (AAAI 2025, the sections on subgraph extraction and on preferences, as
MMRec's pgl.py reads them) written out with dense matrices, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import formulas
from support.formulas import unit

from mmjax.core.errors import InputError
from mmjax.ops import draws, weighted_graph
from mmjax.recommenders import pgl
from mmjax.recommenders.layers import propagation

CASES = {
    "local": dict(weights={"visual": 0.1}, item_layers=2),
    "global": dict(subgraph="global", dim=16, threshold=0.02),
    "one modality": dict(layers=1, trainable_features=False),
}
DEFAULTS = dict(dim=5, layers=2, item_layers=1, top_k=3)


@pytest.fixture
def masks(monkeypatch):
    """What dropout keeps, in the order of the calls."""
    rng, log = np.random.default_rng(2), []

    def dropout(key, x, rate):
        log.append(rng.random(x.shape) >= rate)
        return jnp.where(log[-1], x / (1 - rate), 0)

    monkeypatch.setattr(draws, "dropout", dropout)
    return log


def normalised(bought):
    """The block of users and items of the whole symmetric matrix."""
    users, items = (bought.sum(axis) + 1e-7 for axis in (1, 0))
    return bought / np.sqrt(users[:, None] * items)


def whole(block):
    n_users, n_items = block.shape
    return np.block([[np.zeros((n_users,) * 2), block], [block.T, np.zeros((n_items,) * 2)]])


def as_mmrec(block, dim, threshold):
    """Its subgraph of users and items together, from all singular triplets."""
    left, values, right = np.linalg.svd(whole(block))
    quarter = dim // 4
    values = values[:quarter] * values[dim - quarter : dim]
    product = left[:, :quarter] * values @ right[:quarter]
    return np.where(np.abs(product) >= threshold, product, 0)


def nearest(features, k):
    """S_m: the k largest cosines of each row are 1/k; none for rows of zeros."""
    cosines, there = unit(features) @ unit(features).T, np.abs(features).sum(1) > 0
    kept = np.zeros_like(cosines)
    for row in np.flatnonzero(there):
        order = np.argsort(-np.where(there, cosines[row], -np.inf), kind="stable")[:k]
        kept[row, order] = 1 / (k + 1e-7)
    return kept


def nce(a, b, temperature):
    logits = unit(a) @ unit(b).T / temperature
    return (np.log(np.exp(logits).sum(1)) - np.diag(logits)).mean()


def formula(catalog, options, subgraph, masks, *, cl_weight, temperature, drop):
    bought = formulas.matrix(catalog)
    n_users, names = len(bought), list(catalog.features)
    shares = {"visual": 0.1, "textual": 0.9} if "weights" in options else {}
    similar = sum(
        shares.get(name, 1 / len(names)) * nearest(catalog.features[name], options["top_k"])
        for name in names
    )

    def embed(p, graph):
        items = []
        for m, name in enumerate(names):
            features = p.get(f"contents.{m}.features", catalog.features[name])
            x = features @ p[f"contents.{m}.weight"].T + p[f"contents.{m}.bias"]
            items.append(unit(x) * catalog.present[name][:, None])
        x = np.hstack(items)
        total = state = np.vstack([p["user"], x])
        for _ in range(options["layers"]):
            state = graph @ state
            total = total + state
        users, items = np.split(total / (options["layers"] + 1), [n_users])
        return users, items + np.linalg.matrix_power(similar, options["item_layers"]) @ x

    def compute(p, batch):
        tables = embed(p, subgraph)
        loss = formulas.bpr(*tables, batch)
        kept = [mask / (1 - drop) for mask in masks]
        user, pos = tables[0][batch["user"]], tables[1][batch["pos"]]
        loss += cl_weight / 2 * nce(user * kept[0], user * kept[1], temperature)
        loss += cl_weight / 2 * nce(pos * kept[2], pos * kept[3], temperature)
        return loss, embed(p, whole(normalised(bought)))

    return compute


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_equals_the_formula(case, masks, monkeypatch):
    monkeypatch.setattr(pgl, "ENTRIES", 60)  # several blocks of rows
    with jax.enable_x64(True):
        catalog = formulas.catalog(*(["textual"] if case == "one modality" else []))
        options = DEFAULTS | CASES[case]
        bought = formulas.matrix(catalog)
        if case == "global":
            model = pgl.PGL(catalog, **options, rngs=nnx.Rngs(0))
            epoch = model.epoch(jax.random.key(0))
            subgraph = as_mmrec(normalised(bought), options["dim"], options["threshold"])
        else:
            pattern = weighted_graph.pattern(catalog.train_user, catalog.train_item, catalog.shape)
            chosen = np.arange(0, len(catalog.train_user), 3)
            epoch = propagation.normalised(
                weighted_graph.keep(pattern, jnp.asarray(chosen)), 1e-7, np.float64
            )
            drawn = np.zeros_like(bought)
            drawn[catalog.train_user[chosen], catalog.train_item[chosen]] = 1
            subgraph = whole(normalised(drawn))
        hypers = dict(cl_weight=0.2, temperature=0.5, drop=0.3)
        expected = formula(catalog, options, subgraph, masks, **hypers)
        formulas.check(pgl.PGL, catalog, options, expected, epoch=epoch, **hypers)


def test_the_principal_graph_has_the_entries_of_mmrecs():
    """Its users and users, and items and items, have none; some entries are negative."""
    block = normalised(formulas.matrix(formulas.catalog()))
    theirs, n_users = as_mmrec(block, 16, 0.02), len(block)
    ours = pgl.principal(block, 8, 0.02)
    np.testing.assert_allclose(ours.toarray(), theirs[:n_users, n_users:], atol=1e-12)
    assert (theirs[:n_users, :n_users] == 0).all()
    assert 0 < ours.nnz < block.size
    assert ours.data.min() < 0 < ours.data.max()


@pytest.mark.slow
def test_an_epoch_draws_some_of_the_edges():
    catalog = formulas.catalog("visual")
    with jax.enable_x64(True):
        model = pgl.PGL(catalog, **DEFAULTS, keep=0.5, rngs=nnx.Rngs(params=0))
        graphdef, variables = nnx.split(model)
        draw = jax.jit(lambda v, seed: nnx.merge(graphdef, v).epoch(jax.random.key(seed)))
        graphs = [draw(variables, seed).forward for seed in (0, 0, 1)]
    pairs = [set(zip(g.rows.tolist(), g.columns.tolist(), strict=True)) for g in graphs]
    assert pairs[0] == pairs[1] != pairs[2]
    train = set(zip(catalog.train_user.tolist(), catalog.train_item.tolist(), strict=True))
    for g, drawn in zip(graphs, pairs, strict=True):
        assert len(drawn) == len(g.rows) == len(train) // 2
        assert drawn < train
        left = np.zeros(catalog.shape)
        left[g.rows, g.columns] = 1
        np.testing.assert_allclose(g.values, normalised(left)[g.rows, g.columns])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subgraph": "locale"}, "did you mean 'local'"),
        ({"keep": 0.0}, "keep=0.0 must be more than 0"),
        ({"subgraph": "global"}, "2 singular values has no quarter"),
        ({"weights": {"visuals": 0.1}}, "did you mean 'visual'"),
    ],
)
def test_options_that_cannot_be(options, message):
    options = DEFAULTS | dict(trainable_features=False) | options
    with pytest.raises(InputError, match=message):
        pgl.PGL(formulas.catalog(), **options, rngs=nnx.Rngs(0))
