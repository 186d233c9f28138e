"""NGCF and NGCF-M against method.md 7.4 (and 7.0, RW+I) written out with dense matrices, in
float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import formulas
from support.formulas import unit

from mmjax.core.errors import InputError
from mmjax.ops import draws, graph
from mmjax.recommenders import ngcf, ngcfm

NODES, MESSAGES, L_W = 0.25, 0.3, 0.4
CASES = {
    "elliot": (ngcf.NGCF, dict(layers=2)),
    "mean, one layer": (ngcf.NGCF, dict(layers=1, combine="mean")),
    "noisy evaluation": (ngcf.NGCF, dict(layers=2, evaluation_dropout=0.5)),
    "whole graph": (ngcf.NGCF, dict(layers=1, node_dropout=0.0)),
    "multimodal": (ngcfm.NGCFM, dict(layers=2)),
    "one modality": (ngcfm.NGCFM, dict(layers=1, evaluation_dropout=0.5)),
}


@pytest.fixture
def masks(monkeypatch):
    """The rate of each dropout and what it keeps, in the order of the calls."""
    rng, log = np.random.default_rng(2), []

    def dropout(key, x, rate):
        kept = rng.random(x.shape) >= rate
        log.append((rate, kept))
        return jnp.where(kept, x / (1 - rate), 0)

    monkeypatch.setattr(draws, "dropout", dropout)
    return log


def formula(catalog, options, masks):
    bought = formulas.matrix(catalog)
    n_users, n_items = bought.shape
    layers = options["layers"]
    whole = np.block([[np.eye(n_users), bought], [bought.T, np.eye(n_items)]])
    whole = whole / whole.sum(axis=1, keepdims=True)

    def walk(p, adjacency, kept, rate):
        x = np.vstack([p["user"], p["item"]])
        states = [x]
        for n in range(layers):
            y = adjacency @ x
            w1, b1, w2, b2 = (
                p[f"layers.{n}.{k}"] for k in ("weight1", "bias1", "weight2", "bias2")
            )
            h = (y @ w1 + b1) + ((y * x) @ w2 + b2)
            h = np.where(h > 0, h, 0.2 * h)
            if rate:
                h = h * np.vstack(kept[2 * n : 2 * n + 2]) / (1 - rate)
            x = unit(h)
            states.append(x)
        z = np.mean(states, axis=0) if options["combine"] == "mean" else np.hstack(states)
        users, items = z[:n_users], z[n_users:]
        if "head.user" in p:
            features = np.hstack(list(catalog.features.values()))
            content = features @ p["head.content.weight"].T + p["head.content.bias"]
            there = np.any(list(catalog.present.values()), axis=0)
            users = np.hstack([users, p["head.user"]])
            items = np.hstack([items, unit(content) * there[:, None]])
        return users, items

    def compute(p, batch):
        rates = [rate for rate, _ in masks]
        left = [kept for _, kept in masks]
        evaluated = 2 * layers if "seed" in p else 0
        want = [options["node_dropout"]] * 4 * (options["node_dropout"] > 0)
        want += [options["evaluation_dropout"]] * evaluated + [MESSAGES] * 2 * layers
        assert rates == want
        adjacency = whole
        if options["node_dropout"]:
            to_users, to_items, users, items = left[:4]
            left = left[4:]
            kept = np.zeros_like(whole)
            edge = catalog.train_user, catalog.train_item + n_users
            kept[edge], kept[edge[::-1]] = to_users, to_items
            kept += np.diag(np.concatenate([users, items]))
            adjacency = whole * kept / (1 - options["node_dropout"])
        evaluation, steps = left[:evaluated], left[evaluated:]
        users, items = walk(p, adjacency, steps, MESSAGES)
        rows = users[batch["user"]], items[batch["pos"]], items[batch["neg"]]
        penalty = 0.5 * sum((x**2).sum() for x in rows) / len(batch["user"])
        loss = formulas.bpr(users, items, batch) + L_W * penalty
        return loss, walk(p, whole, evaluation, options["evaluation_dropout"])

    return compute


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_equals_the_formula(case, masks):
    recommender, options = CASES[case]
    combine = "concat" if recommender is ngcf.NGCF else "mean"
    defaults = dict(dim=5, node_dropout=NODES, combine=combine, evaluation_dropout=0.0)
    options = defaults | options
    with jax.enable_x64(True):
        catalog = formulas.catalog(*(["visual"] if case == "one modality" else []))
        expected = formula(catalog, options, masks)
        hypers = dict(l_w=L_W, message_dropout=MESSAGES)
        formulas.check(recommender, catalog, options, expected, **hypers)


@pytest.mark.slow
def test_an_epoch_drops_entries_of_both_directions_and_the_diagonal():
    catalog = formulas.catalog()
    model = ngcf.NGCF(catalog, dim=4, node_dropout=0.3, rngs=nnx.Rngs(0))

    def dense(g):
        return graph.propagate(g, jnp.eye(g.shape[1]))

    @jax.jit
    @jax.vmap
    def draw(key):
        left = model.epoch(key)
        return dense(left.to_users), dense(left.to_items), left.users, left.items

    to_users, to_items, users, items = draw(jax.random.split(jax.random.key(0), 300))
    bought = formulas.matrix(catalog)
    of_users, of_items = (1 / (bought.sum(axis) + 1)[:, None] for axis in (1, 0))
    for got, want in (
        (to_users, bought * of_users),
        (to_items, bought.T * of_items),
        (users, of_users),
        (items, of_items),
    ):
        left = np.asarray(got) != 0
        np.testing.assert_allclose(got, np.where(left, want[None] / 0.7, 0), rtol=1e-6)
        assert abs(left[:, want > 0].mean() - 0.7) < 0.03
    both = np.asarray(to_users) != 0, np.asarray(to_items).transpose(0, 2, 1) != 0
    together = (both[0] & both[1])[:, bought > 0].mean()
    assert abs(together - 0.7**2) < 0.03  # independent


@pytest.mark.slow
def test_message_dropout_is_new_in_each_step_and_off_at_evaluation():
    batch = {k: jnp.arange(8) + n for n, k in enumerate(("user", "pos", "neg"))}
    graphdef, variables = nnx.split(ngcf.NGCF(formulas.catalog(), dim=4, rngs=nnx.Rngs(0)))

    @jax.jit
    def loss(seed, rate):
        model = nnx.merge(graphdef, variables)
        epoch = model.epoch(jax.random.key(0))
        key = jax.random.key(seed)
        return model.loss(batch, epoch, l_w=0.0, message_dropout=rate, key=key)

    assert loss(0, 0.5) == loss(0, 0.5) != loss(1, 0.5)
    assert loss(0, 0.0) == loss(1, 0.0)


@pytest.mark.parametrize("name", ["node_dropout", "evaluation_dropout"])
@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_rates_that_leave_nothing(name, rate):
    with pytest.raises(InputError, match=f"{name}={rate}"):
        ngcf.NGCF(formulas.catalog(), dim=4, **{name: rate}, rngs=nnx.Rngs(0))
