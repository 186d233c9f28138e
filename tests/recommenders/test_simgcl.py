"""SimGCL against method.md 7.12 written out with dense matrices, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import formulas
from support.formulas import unit

from mmjax.core.errors import InputError
from mmjax.recommenders import simgcl

HYPERS = dict(l_w=0.3, cl_weight=0.7, noise=0.2, temperature=0.4)
CASES = {
    "elliot": dict(layers=2),
    "softplus, squares": dict(layers=3, ranking_loss="softplus", regulariser="squares", eps=1e-7),
    "far offset": dict(layers=1, offset=0.2),
}


@pytest.fixture
def draws(monkeypatch):
    """What takes the place of uniform numbers, in the order of the calls."""
    rng, log = np.random.default_rng(2), []

    def uniform(key, shape, *args, **options):
        log.append(rng.random(shape))
        return jnp.asarray(log[-1])

    monkeypatch.setattr("mmjax.ops.draws.uniform", uniform)
    return log


def formula(catalog, options, draws):
    bought, layers = formulas.matrix(catalog), options["layers"]
    eps = options.get("eps", 0)
    degrees = bought.sum(1), bought.sum(0)
    of_user, of_item = (np.where(d > 0, (np.maximum(d, 1) + eps) ** -0.5, 0) for d in degrees)
    block = of_user[:, None] * bought * of_item

    def states(p, noise=None):
        user, item = p["user"], p["item"]
        users, items = [], []
        for n in range(layers):
            user, item = block @ item, block.T @ user
            if noise is not None:
                user = user + np.sign(user) * unit(noise[2 * n]) * HYPERS["noise"]
                item = item + np.sign(item) * unit(noise[2 * n + 1]) * HYPERS["noise"]
            users.append(user)
            items.append(item)
        return np.mean(users, axis=0), np.mean(items, axis=0)

    def compute(p, batch):
        noise = draws[-4 * layers :]  # the first are those of the initialisation
        users, items = states(p)
        margin = (users[batch["user"]] * (items[batch["pos"]] - items[batch["neg"]])).sum(axis=1)
        offset = 0 if options.get("ranking_loss") == "softplus" else options.get("offset", 1e-5)
        loss = -np.log(offset + 1 / (1 + np.exp(-margin))).mean()
        rows = users[batch["user"]], items[batch["pos"]]
        if options.get("regulariser") == "squares":
            penalty = sum(0.5 * (x**2).sum() for x in rows)
        else:
            penalty = sum(map(np.linalg.norm, rows))
        loss += HYPERS["l_w"] * penalty / len(margin)
        one, other = states(p, noise[: 2 * layers]), states(p, noise[2 * layers :])
        for a, b, nodes in zip(one, other, (batch["user"], batch["pos"]), strict=True):
            nodes = np.unique(nodes)
            assert len(nodes) < len(margin)
            loss += HYPERS["cl_weight"] * formulas.info_nce(
                a[nodes], b[nodes], HYPERS["temperature"]
            )
        return loss, (users, items)

    return compute


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_equals_the_formula(case, draws):
    with jax.enable_x64(True):
        catalog, options = formulas.catalog(), CASES[case] | dict(dim=5)
        expected = formula(catalog, options, draws)
        formulas.check(simgcl.SimGCL, catalog, options, expected, **HYPERS)


@pytest.mark.slow
def test_noise_is_new_in_each_step_view_and_layer(monkeypatch):
    batch = {k: jnp.arange(8) + n for n, k in enumerate(("user", "pos", "neg"))}
    model = simgcl.SimGCL(formulas.catalog(), dim=4, layers=2, rngs=nnx.Rngs(0))

    @jax.jit
    def keys(seed):
        seen = []

        def uniform(key, shape, dtype):
            return seen.append(key) or jnp.ones(shape, dtype)

        monkeypatch.setattr("mmjax.ops.draws.uniform", uniform)
        model.loss(batch, {}, l_w=0.0, key=jax.random.key(seed))
        return jnp.stack([jax.random.key_data(key) for key in seen])

    found = np.concatenate([keys(0), keys(1)])
    assert len(np.unique(found, axis=0)) == len(found) == 2 * 2 * 2 * 2


@pytest.mark.slow
def test_rows_move_by_the_noise_within_their_orthant():
    x = jax.random.normal(jax.random.key(0), (50, 6))
    moved = simgcl.disturbed(jax.random.key(1), x, 0.25)
    np.testing.assert_allclose(np.linalg.norm(moved - x, axis=1), 0.25, rtol=1e-5)
    assert (np.sign(moved) == np.sign(x)).all()


def test_without_layers_nothing_is_left():
    with pytest.raises(InputError, match="layers=0"):
        simgcl.SimGCL(formulas.catalog(), dim=4, layers=0, rngs=nnx.Rngs(0))
