"""MGCN against method.md 7.10 written out with dense matrices, in float64."""

import jax
import numpy as np
import pytest
from flax import nnx
from support import formulas

from mmjax.core.errors import InputError
from mmjax.recommenders import mgcn

L_W, CL, TAU, K = 0.3, 0.7, 0.4, 4
CASES = {
    "mmrec": dict(),
    "elliot": dict(item_graph="uniform", user_view="none", layers=1, item_layers=2),
    "one modality": dict(),
}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def formula(catalog, options):
    bought, elliot = formulas.matrix(catalog), options.get("item_graph") == "uniform"
    adjacency = formulas.adjacency(catalog)
    view = bought if elliot else adjacency[: formulas.USERS, formulas.USERS :]
    graphs = []
    for features in catalog.features.values():
        kept = formulas.similar(np.asarray(features), K)
        edges = (kept != 0).astype(float)
        graphs.append(edges / (K + 1e-7) if elliot else formulas.by_row_sums(kept))

    def compute(p, batch):
        def linear(name, x):
            return x @ p[f"{name}.kernel"] + p.get(f"{name}.bias", 0)

        state = total = np.vstack([p["user"], p["item"]])
        layers = options.get("layers", 2)
        for _ in range(layers):
            state = adjacency @ state
            total = total + state
        c, views = total / (layers + 1), []
        for m, (name, similar) in enumerate(zip(catalog.features, graphs, strict=True)):
            x = p[f"contents.{m}.features"] @ p[f"contents.{m}.weight"].T + p[f"contents.{m}.bias"]
            v = p["item"] * sigmoid(linear(f"gates.{m}", x * catalog.present[name][:, None]))
            for _ in range(options.get("item_layers", 1)):
                v = similar @ v
            views.append(np.vstack([view @ v, v]))
        logits = [linear("attention.query", np.tanh(linear("attention.hidden", v))) for v in views]
        shares = np.exp(logits) / np.exp(logits).sum(axis=0)
        common = (shares * views).sum(axis=0)
        apart = sum(sigmoid(linear(f"prefers.{m}", c)) * (v - common) for m, v in enumerate(views))
        t = (apart + common) / (len(views) + 1)
        tables = np.split(c + t, [formulas.USERS])
        user, pos = batch["user"], formulas.USERS + batch["pos"]
        rows = [tables[0][user], tables[1][batch["pos"]], tables[1][batch["neg"]]]
        squares = sum(np.square(x).sum() for x in rows) / len(user)
        contrast = sum(formulas.info_nce(t[rows], c[rows], TAU) for rows in (user, pos))
        return formulas.bpr(*tables, batch) + L_W / 2 * squares + CL * contrast, tables

    return compute


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_equals_the_formula(case):
    with jax.enable_x64(True):
        catalog = formulas.catalog(*(["textual"] if case == "one modality" else []))
        formulas.check(
            mgcn.MGCN,
            catalog,
            dict(dim=5, top_k=K) | CASES[case],
            formula(catalog, CASES[case]),
            l_w=L_W,
            cl_weight=CL,
            temperature=TAU,
        )


def test_options_that_cannot_be():
    catalog = formulas.catalog()
    with pytest.raises(InputError, match="did you mean 'cosine'"):
        mgcn.MGCN(catalog, dim=4, item_graph="cosines", rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="user_view='left'; there are sym, none"):
        mgcn.MGCN(catalog, dim=4, user_view="left", rngs=nnx.Rngs(0))
