"""LightGCN-M against method.md 7.3 written out with dense matrices, in float64.

`content="head"` is the model of arXiv 2408.11767's code: LightGCN of 7.3 and the head of 7.4.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import formulas
from support.formulas import unit

from mmjax.core.errors import InputError
from mmjax.recommenders import lightgcnm

L_W = 0.4
CASES = {
    "concat": dict(layers=2),
    "frozen, whole degrees": dict(layers=1, trainable_features=False, eps=0.5),
    "mean": dict(layers=1, aggregation="mean"),
    "sum": dict(layers=1, aggregation="sum", trainable_features=False),
    "head": dict(layers=2, content="head"),
    "one modality": dict(layers=1),
    "head, one modality": dict(layers=0, content="head"),
}


def formula(catalog, options):
    bought = formulas.matrix(catalog)
    n_users, n_items = bought.shape
    whole = np.block([[np.zeros((n_users,) * 2), bought], [bought.T, np.zeros((n_items,) * 2)]])
    degree = whole.sum(axis=1) + options.get("eps", 0)
    scale = np.where(degree > 0, np.where(degree > 0, degree, 1) ** -0.5, 0)
    whole = scale[:, None] * whole * scale
    raw, present = list(catalog.features.values()), list(catalog.present.values())
    if options.get("aggregation", "concat") == "concat":
        raw, present = [np.hstack(raw)], [np.any(present, axis=0)]

    def content(p, n, path):
        x = p.get(f"{path}.features", raw[n]) @ p[f"{path}.weight"].T + p[f"{path}.bias"]
        return unit(x * present[n][:, None])

    def compute(p, batch):
        if "head.user" in p:
            item = p["item"]
        else:
            item = sum(content(p, n, f"contents.{n}") for n in range(len(raw)))
            item = item / len(raw) if options.get("aggregation") == "mean" else item
        state = total = np.vstack([p["user"], item])
        for _ in range(options["layers"]):
            state = whole @ state
            total = total + state
        total = total / (options["layers"] + 1)
        users, items = total[:n_users], total[n_users:]
        first = p["user"]
        if "head.user" in p:
            users = first = np.hstack([users, p["head.user"]])
            items = np.hstack([items, content(p, 0, "head.content")])
        rows = first[batch["user"]], items[batch["pos"]], items[batch["neg"]]
        penalty = 0.5 * sum((x**2).sum() for x in rows) / len(batch["user"])
        return formulas.bpr(users, items, batch) + L_W * penalty, (users, items)

    return compute


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_equals_the_formula(case):
    with jax.enable_x64(True):
        catalog = formulas.catalog(*(["visual"] if "one modality" in case else []))
        options = CASES[case] | dict(dim=5)
        formulas.check(lightgcnm.LightGCNM, catalog, options, formula(catalog, options), l_w=L_W)


@pytest.mark.slow
def test_an_item_without_any_content_is_what_its_users_make_of_it():
    catalog = formulas.catalog("visual")
    absent = formulas.ABSENT["visual"]
    model = lightgcnm.LightGCNM(catalog, dim=4, layers=1, rngs=nnx.Rngs(0))
    buyers = np.flatnonzero(formulas.matrix(catalog)[:, absent])
    model.user[...] = jnp.zeros_like(model.user[...]).at[buyers].set(1.0)
    item = model.tables()[1][absent]
    assert (item > 0).all()
    np.testing.assert_allclose(item, item[0], rtol=1e-6)


def test_bad_options():
    catalog = formulas.catalog()
    for option in (dict(content="item"), dict(aggregation="max")):
        with pytest.raises(InputError, match=f"{next(iter(option))}="):
            lightgcnm.LightGCNM(catalog, dim=4, **option, rngs=nnx.Rngs(0))
