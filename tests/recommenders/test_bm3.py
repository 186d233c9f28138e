"""BM3 against method.md 7.9 written out with dense matrices, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import formulas
from support.formulas import unit

from mmjax.recommenders import bm3
from mmjax.recommenders.layers import projection

pytestmark = pytest.mark.slow

L_W, CL, LAYERS = 0.3, 0.7, 2


def formula(catalog):
    """The targets, which get no gradient, are those of the first call."""
    adjacency, kept = formulas.adjacency(catalog), []

    def compute(p, batch):
        def predict(x):
            return x @ p["predictor.kernel"] + p["predictor.bias"]

        def away(x, y):
            return 1 - (unit(predict(x)) * unit(y)).sum(axis=1)

        state = total = np.vstack([p["user"], p["item"]])
        for _ in range(LAYERS):
            state = adjacency @ state
            total = total + state
        users, items = np.split(total / (LAYERS + 1), [formulas.USERS])
        items = items + p["item"]
        user, item = users[batch["user"]], items[batch["pos"]]
        contents = []
        for m, name in enumerate(catalog.features):
            x = p[f"contents.{m}.features"] @ p[f"contents.{m}.weight"].T + p[f"contents.{m}.bias"]
            contents.append((x[batch["pos"]], catalog.present[name][batch["pos"]]))
        kept.append((user, item, [x for x, _ in contents]))
        of_user, of_item, of_contents = kept[0]
        loss = away(user, of_item) + away(item, of_user)
        for (x, there), target in zip(contents, of_contents, strict=True):
            loss = loss + CL * there * (away(x, of_item) + away(x, target))
        norms = np.linalg.norm(users) + np.linalg.norm(items)
        return loss.mean() + L_W * norms / len(items), (predict(users), predict(items))

    return compute


@pytest.mark.parametrize("modalities", [(), ("textual",)], ids=["two modalities", "one"])
def test_equals_the_formula(modalities):
    with jax.enable_x64(True):
        catalog = formulas.catalog(*modalities)
        options = dict(dim=5, layers=LAYERS, eps=0.0)
        hypers = dict(l_w=L_W, cl_weight=CL, dropout=0.0)
        formulas.check(bm3.BM3, catalog, options, formula(catalog), **hypers)


def test_targets_are_dropped_anew_by_every_key():
    """By hand: of a cosine with a target of D equal entries, sqrt(k / D) is left where k stay."""
    with jax.enable_x64(True):
        catalog, dim = formulas.catalog("textual"), 400
        options = dict(dim=dim, layers=0)
        rng = np.random.default_rng(0)
        graphdef, rest, params, _ = formulas.build(bm3.BM3, catalog, options, rng)
        params["user"], params["item"] = (np.ones_like(params[k]) for k in ("user", "item"))
        params["predictor"] = {"kernel": np.eye(dim), "bias": np.zeros(dim)}
        rows = jnp.arange(10)

        @jax.jit
        def loss(key):
            model = nnx.merge(graphdef, nnx.State(params), rest)
            hypers = dict(l_w=0.0, cl_weight=0.0, dropout=0.3)
            return model.loss({"user": rows, "pos": rows}, {}, **hypers, key=key)

        values = [float(loss(jax.random.key(n))) for n in range(3)]
        assert len(set(values)) == 3
        np.testing.assert_allclose(values, 2 - 2 * 0.7**0.5, atol=0.02)


def test_few_rows_are_projected_alone():
    """As all of them are, and their features' gradient too; item 4 has no such features."""
    with jax.enable_x64(True):
        catalog, rows = formulas.catalog("visual"), jnp.array([4, 1, 1])
        content = projection.Content(catalog, "visual", 5, trainable=True, rngs=nnx.Rngs(0))
        graphdef, params, rest = nnx.split(content, nnx.Param, ...)

        def total(params, few):
            content = nnx.merge(graphdef, nnx.State(params), rest)
            x = content(rows) if few else content()[rows]
            return (x * jnp.arange(15.0).reshape(3, 5)).sum(), x

        some, whole = (
            jax.value_and_grad(lambda p, few=few: total(p, few), has_aux=True)(
                nnx.to_pure_dict(params)
            )
            for few in (True, False)
        )
        for one, other in zip(*map(jax.tree.leaves, (some, whole)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12)
        jaxpr = jax.make_jaxpr(lambda p: total(p, True))(nnx.to_pure_dict(params))
        assert "f64[13,5]" not in str(jaxpr)
