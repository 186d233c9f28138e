"""GRCN against method.md 7.6 written out with dense matrices, in float64.

Where Elliot gives the weights of edges into items to the wrong edges, the formula does not.
"""

import jax
import numpy as np
import pytest
from flax import nnx
from support import formulas
from support.formulas import leaky, mean_squares, unit

from mmjax.core.errors import InputError
from mmjax.ops import weighted_graph
from mmjax.recommenders import grcn

CASES = {
    "paper": dict(routings=2),
    "mmrec": dict(routings=0, content_penalty="first_table"),
    "elliot": dict(
        routings=1, confidence="target", normalize_layers=True, content_penalty="unweighted"
    ),
    "max": dict(routings=0, layers=1, weight_mode="max"),
    "one modality": dict(routings=0, layers=1, weight_mode="mean", pruning=False),
}


def softmax(logits, bought, axis):
    weights = np.where(bought > 0, np.exp(logits), 0)
    total = weights.sum(axis=axis, keepdims=True)
    return weights / np.where(total > 0, total, 1)


def formula(catalog, l_w, options):
    bought = formulas.matrix(catalog)
    n_users = len(bought)

    def compute(p, batch):
        users, items, weights = [], [], []
        for m, (name, features) in enumerate(catalog.features.items()):
            there = catalog.present[name][:, None]
            x = features @ p[f"contents.{m}.weight"].T + p[f"contents.{m}.bias"]
            f, q = unit(leaky(x) * there), unit(p[f"preferences.{m}"])
            for _ in range(options["routings"]):
                q = unit(q + softmax(q @ f.T, bought, 1) @ f)
            of_users, of_items = softmax(q @ f.T, bought, 1), softmax(q @ f.T, bought, 0)
            users.append(q + of_users @ f)
            items.append(f + of_items.T @ q)
            if "confidence" in p:
                c_user, c_item = np.split(p["confidence"][:, m], [n_users])
                if options.get("confidence") == "target":
                    c_user, c_item = c_item[None], c_user[:, None]
                else:
                    c_user, c_item = c_user[:, None], c_item[None]
                of_users, of_items = of_users * c_item, of_items * c_user
            weights.append((of_users, of_items))
        merge = np.mean if options.get("weight_mode") == "mean" else np.max
        into_users, into_items = merge(weights, axis=0)
        if options.get("pruning", True):
            into_users, into_items = np.maximum(into_users, 0), np.maximum(into_items, 0)
        into_users, into_items = into_users * bought, into_items * bought
        u, i = np.split(unit(p["node"]), [n_users])
        total = [u, i]
        for _ in range(options.get("layers", 2)):
            u, i = into_users @ i, into_items.T @ u
            if options.get("normalize_layers"):
                u, i = unit(u), unit(i)
            total = [total[0] + u, total[1] + i]
        tables = np.hstack([total[0], *users]), np.hstack([total[1], *items])

        user, both = batch["user"], np.concatenate([batch["pos"], batch["neg"]])
        ids = mean_squares(p["node"][user]) + mean_squares(p["node"][n_users + both])
        tastes = [p[f"preferences.{m}"] for m in range(len(users))]
        content = sum(mean_squares(table[user]) for table in tastes)
        penalty = options.get("content_penalty", "weighted")
        first = mean_squares(tastes[0]) if penalty == "first_table" else 0
        weight = 1 if penalty == "unweighted" else l_w
        loss = formulas.bpr(*tables, batch) + l_w * (ids + first) + weight * content
        return loss, tables

    return compute


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_equals_the_formula(case, monkeypatch):
    monkeypatch.setattr(weighted_graph, "BLOCK", 16)  # several blocks
    with jax.enable_x64(True):
        catalog = formulas.catalog(*(["textual"] if case == "one modality" else []))
        options = CASES[case]
        shaping = dict(dim=5, content_dim=4) | options
        formulas.check(grcn.GRCN, catalog, shaping, formula(catalog, 0.3, options), l_w=0.3)


def test_an_accelerator_multiplies_the_ends_of_all_edges_at_once():
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(20, size=50), rng.integers(13, size=50)
    x, y = rng.normal(size=(20, 4)), rng.normal(size=(13, 4))
    for kernel in (weighted_graph._at_once, weighted_graph._in_blocks):
        found = jax.jit(kernel)(rows, columns, x, y)
        np.testing.assert_allclose(found, (x @ y.T)[rows, columns], atol=1e-5)


def test_options_that_cannot_be():
    catalog = formulas.catalog()
    with pytest.raises(InputError, match="must not be negative"):
        grcn.GRCN(catalog, dim=4, routings=-1, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="did you mean 'confid'"):
        grcn.GRCN(catalog, dim=4, weight_mode="confidence", rngs=nnx.Rngs(0))
