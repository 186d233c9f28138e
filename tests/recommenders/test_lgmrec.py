"""LGMRec against its equations (AAAI 2024, the sections on local and global graph embedding and on
optimisation, as MMRec's lgmrec.py reads them) written out with dense matrices, in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import formulas
from support.formulas import unit

from mmjax.core.errors import InputError
from mmjax.ops import contrastive as contrasts
from mmjax.recommenders import lgmrec

CASES = {
    "paper": dict(layers=2, hyper_layers=2),
    "three modalities": dict(layers=0, noisy_evaluation=True),
    "one modality": dict(modal_layers=0, hyperedges=1),
}
DEFAULTS = dict(layers=1, modal_layers=1, hyper_layers=1, hyperedges=3, alpha=0.3, temperature=0.5)


@pytest.fixture
def draws(monkeypatch):
    """What takes the place of random numbers, in the order of the calls."""
    rng, log = np.random.default_rng(2), []

    def gumbel(key, shape, dtype):
        log.append(rng.gumbel(size=shape))
        return jnp.asarray(log[-1], dtype)

    def dropout(key, x, rate):
        log.append(rng.random(x.shape) >= rate)
        return jnp.where(log[-1], x / (1 - rate), 0)

    monkeypatch.setattr(jax.random, "gumbel", gumbel)
    monkeypatch.setattr("mmjax.ops.draws.dropout", dropout)
    return log


def softmax(logits):
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def contrast(p, q, rows, temperature):
    cosines = np.exp(unit(p)[rows] @ unit(q).T / temperature)
    return -np.log(cosines[np.arange(len(rows)), rows] / cosines.sum(axis=1))


def formula(catalog, options, draws, *, l_w, cl_weight, drop):
    options = DEFAULTS | options
    dim, t = options["dim"], options["temperature"]
    bought = formulas.matrix(catalog)
    n_users, n_items = bought.shape
    whole = np.block([[np.zeros((n_users,) * 2), bought], [bought.T, np.zeros((n_items,) * 2)]])
    scale = (whole.sum(1) + 1e-7) ** -0.5
    whole = scale[:, None] * whole * scale

    def embed(p, noise, masks):
        own = state = np.vstack([p["user"], p["item"]])
        for _ in range(options["layers"]):
            state = whole @ state
            own = own + state
        own = own / (options["layers"] + 1)
        z, hyper = own, []
        for m, (name, features) in enumerate(catalog.features.items()):
            both = features @ p[f"contents.{m}.weight"].T
            x, logits = both[:, :dim], both[:, dim:]
            local = np.vstack([bought @ x / (bought.sum(1)[:, None] + 1e-7), x])
            for _ in range(options["modal_layers"]):
                local = whole @ local
            z = z + unit(local)
            of_items = softmax((logits + noise[2 * m]) / t) * masks[2 * m]
            of_items = of_items * catalog.present[name][:, None]
            of_users = softmax((bought @ logits + noise[2 * m + 1]) / t) * masks[2 * m + 1]
            before = g = own[n_users:]
            for _ in range(options["hyper_layers"]):
                before, g = g, of_items @ of_items.T @ g
            hyper.append(np.vstack([of_users @ of_items.T @ before, g]))
        return z + options["alpha"] * unit(sum(hyper)), hyper

    def compute(p, batch):
        count = 2 * len(catalog.features)  # draws of noise, and of masks, for each loss
        evaluation = draws[: -2 * count] or [0] * count
        assert len(evaluation) == count
        noise, masks = draws[-2 * count :: 2], draws[-2 * count + 1 :: 2]
        z, hyper = embed(p, noise, [mask / (1 - drop) for mask in masks])
        tables = z[:n_users], z[n_users:]
        rows = tables[0][batch["user"]], tables[1][batch["pos"]], tables[1][batch["neg"]]
        loss = formulas.bpr(*tables, batch)
        loss += l_w * sum(map(np.linalg.norm, rows)) / len(batch["user"])
        there = [catalog.present[name][batch["pos"]] for name in catalog.features]
        for m, n in itertools.combinations(range(len(hyper)), 2):
            a, b = hyper[m], hyper[n]
            of_users = contrast(a[:n_users], b[:n_users], batch["user"], t)
            of_items = contrast(a[n_users:], b[n_users:], batch["pos"], t)
            loss += cl_weight * (of_users.sum() + of_items[there[m] & there[n]].sum())
        z = embed(p, evaluation, [1] * count)[0]
        return loss, (z[:n_users], z[n_users:])

    return compute


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_equals_the_formula(case, draws, monkeypatch):
    monkeypatch.setattr(contrasts, "CPU_LOGITS", 1)  # several blocks, the last one shorter
    with jax.enable_x64(True):
        names = {"one modality": ["textual"], "three modalities": formulas.WIDTHS}.get(case, [])
        catalog = formulas.catalog(*names)
        if case == "three modalities":
            catalog.features["third"] = np.cos(catalog.features["visual"][:, :5])
            catalog.present["third"] = np.ones(formulas.ITEMS, bool)
        options = DEFAULTS | CASES[case] | dict(dim=5)
        hypers = dict(l_w=0.3, cl_weight=0.2, drop=0.4)
        expected = formula(catalog, options, draws, **hypers)
        formulas.check(lgmrec.LGMRec, catalog, options, expected, **hypers)


@pytest.mark.slow
def test_noise_is_new_in_each_step_and_evaluation_has_none():
    batch = {"user": jnp.arange(8), "pos": jnp.arange(8), "neg": jnp.arange(8) + 4}

    def build(noisy):
        options = dict(dim=5, layers=1, modal_layers=0, noisy_evaluation=noisy)
        model = lgmrec.LGMRec(formulas.catalog("visual"), **options, rngs=nnx.Rngs(params=0))
        return nnx.split(model)

    graphdef, variables = build(noisy=False)

    @jax.jit
    def loss(seed, drop):
        model = nnx.merge(graphdef, variables)
        return model.loss(batch, {}, l_w=0.0, drop=drop, key=jax.random.key(seed))

    assert loss(0, 0.0) == loss(0, 0.0)
    assert len({float(loss(*case)) for case in ((0, 0.0), (1, 0.0), (0, 0.5))}) == 3

    def tables(noisy):
        graphdef, variables = build(noisy)
        return jax.jit(lambda v: nnx.merge(graphdef, v).tables()[1])(variables)

    noisy = tables(noisy=True)
    assert np.abs(noisy - tables(noisy=False)).max() > 1e-3
    np.testing.assert_array_equal(noisy, tables(noisy=True))


def test_nothing_of_all_by_all_is_made():
    """Neither the loss nor its gradient has an array [U, U], [U, I] or [I, I]."""
    catalog, batch = formulas.catalog(), {k: jnp.arange(8) for k in ("user", "pos", "neg")}
    rng = np.random.default_rng(0)
    graphdef, rest, params, drawn = formulas.build(
        lgmrec.LGMRec, catalog, dict(dim=5, hyperedges=3, hyper_layers=2), rng
    )

    def loss(params):
        model = nnx.merge(graphdef, nnx.State(params), nnx.State(drawn), rest)
        return model.loss(batch, {}, l_w=0.1, key=jax.random.key(0))

    text = str(jax.make_jaxpr(jax.grad(loss))(params))
    assert f"[{formulas.ITEMS},3]" in text
    for shape in itertools.product((formulas.USERS, formulas.ITEMS), repeat=2):
        assert "[{},{}]".format(*shape) not in text


def test_no_hyperedges():
    with pytest.raises(InputError, match="hyperedges=0 and hyper_layers=1 must be at least 1"):
        lgmrec.LGMRec(formulas.catalog(), dim=4, hyperedges=0, rngs=nnx.Rngs(0))
