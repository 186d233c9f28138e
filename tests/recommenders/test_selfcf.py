"""SelfCF against MMRec's selfcfed_lgn.py and encoders.py, and the authors' selfcfep_lgn.py, written
out with dense matrices, in float64.

No gradient goes through the targets: the formula keeps those of its first call.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import formulas
from support.formulas import unit

from mmjax.core.errors import InputError
from mmjax.recommenders import selfcf

HYPERS = dict(l_w=0.3, dropout=0.4)
CASES = {
    "embedding": dict(layers=2),
    "mmrec": dict(layers=2, encoder_dropout=True),
    "edges": dict(layers=1, perturbation="edges"),
    "edges in both": dict(layers=2, perturbation="edges", encoder_dropout=True),
}


@pytest.fixture
def draws(monkeypatch):
    """The rate of the encoder's dropout, and what each dropout keeps in the order of the calls."""
    rng, masks = np.random.default_rng(2), []

    def dropout(key, x, rate):
        masks.append(rng.random(x.shape) >= 0.4)
        return jnp.where(masks[-1], x / (1 - rate), 0)

    def uniform(key, shape=(), dtype=float, **options):
        return jnp.full(shape, 0.3, dtype)

    monkeypatch.setattr("mmjax.ops.draws.dropout", dropout)
    monkeypatch.setattr(jax.random, "uniform", uniform)
    return masks


def formula(catalog, options, masks):
    bought = formulas.matrix(catalog)
    n_users, n_items = bought.shape
    whole = np.block([[np.zeros((n_users,) * 2), bought], [bought.T, np.zeros((n_items,) * 2)]])
    scale = (whole.sum(axis=1) + 1e-7) ** -0.5
    whole = scale[:, None] * whole * scale
    edge = catalog.train_user, catalog.train_item + n_users
    fixed = []

    def thinned(to_users, to_items, rate):
        kept = np.zeros_like(whole)
        kept[edge], kept[edge[::-1]] = to_users, to_items
        return whole * kept / (1 - rate)

    def encode(p, adjacency):
        state = total = np.vstack([p["user"], p["item"]])
        for _ in range(options["layers"]):
            state = adjacency @ state
            total = total + state
        return total / (options["layers"] + 1)

    def predict(p, x):
        return x @ p["predictor.kernel"] + p["predictor.bias"]

    def compute(p, batch):
        left, adjacency = list(masks), whole
        if options.get("encoder_dropout"):
            adjacency = thinned(left.pop(0), left.pop(0), 0.3)
        assert len(left) == 2
        e = encode(p, adjacency)
        rows = batch["user"], batch["pos"] + n_users
        if not fixed and options.get("perturbation") == "edges":
            t = thinned(*left, HYPERS["dropout"]) @ e
            fixed.extend(t[row] for row in rows)
        elif not fixed:
            fixed.extend(
                e[row] * mask / (1 - HYPERS["dropout"])
                for row, mask in zip(rows, left, strict=True)
            )
        user, pos = (e[row] for row in rows)
        loss = -(unit(predict(p, user)) * unit(fixed[1])).sum(axis=1).mean() / 2
        loss -= (unit(predict(p, pos)) * unit(fixed[0])).sum(axis=1).mean() / 2
        loss += HYPERS["l_w"] * 0.5 * ((user**2).sum() + (pos**2).sum())
        e = encode(p, whole)
        both = np.hstack([predict(p, e), e]), np.hstack([e, predict(p, e)])
        return loss, (both[0][:n_users], both[1][n_users:])

    return compute


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_equals_the_formula(case, draws):
    with jax.enable_x64(True):
        catalog, options = formulas.catalog(), CASES[case] | dict(dim=5)
        expected = formula(catalog, options, draws)
        formulas.check(selfcf.SelfCF, catalog, options, expected, **HYPERS)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_dropout_is_new_in_each_step(case):
    batch = {"user": jnp.arange(8), "pos": jnp.arange(8)}
    model = selfcf.SelfCF(formulas.catalog(), dim=4, **CASES[case], rngs=nnx.Rngs(0))
    graphdef, variables = nnx.split(model)

    @jax.jit
    def loss(seed, rate):
        model = nnx.merge(graphdef, variables)
        epoch = model.epoch(jax.random.key(0))
        return model.loss(batch, epoch, dropout=rate, key=jax.random.key(seed))

    assert loss(0, 0.5) == loss(0, 0.5) != loss(1, 0.5)
    assert (loss(0, 0.0) == loss(1, 0.0)) == (not CASES[case].get("encoder_dropout", False))


def test_bad_options():
    with pytest.raises(InputError, match="perturbation='edge'; did you mean 'edges'"):
        selfcf.SelfCF(formulas.catalog(), dim=4, perturbation="edge", rngs=nnx.Rngs(0))
