"""LayerGCN against MMRec's layergcn.py written out with dense matrices, in float64: the states of
each layer weighed by their cosine with the ego layer, their sum, losses that are sums, and what is
drawn each epoch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import formulas
from support.formulas import unit

from mmjax.core.errors import InputError
from mmjax.ops import graph
from mmjax.recommenders import layergcn

L_W, EPS = 0.3, 1e-7


def normalised(bought):
    of_user, of_item = ((bought.sum(axis) + EPS) ** -0.5 for axis in (1, 0))
    return of_user[:, None] * bought * of_item


def dense(adjacency):
    return graph.propagate(adjacency, jnp.eye(adjacency.shape[1]))


def epochs(catalog, options):
    """`epoch` as a function of the variables, and these."""
    graphdef, variables = nnx.split(layergcn.LayerGCN(catalog, **options, rngs=nnx.Rngs(0)))
    return lambda variables, key: nnx.merge(graphdef, variables).epoch(key), variables


def formula(catalog, layers, block):
    def walk(p, block):
        ego = state = p["user"], p["item"]
        totals = [0, 0]
        for _ in range(layers):
            state = block @ state[1], block.T @ state[0]
            alike = [(unit(h) * unit(x)).sum(axis=1) for h, x in zip(state, ego, strict=True)]
            state = [w[:, None] * h for w, h in zip(alike, state, strict=True)]
            totals = [total + x for total, x in zip(totals, state, strict=True)]
        return totals

    def compute(p, batch):
        loss = formulas.bpr(*walk(p, block), batch) * len(batch["user"])
        rows = p["user"][batch["user"]], p["item"][batch["pos"]], p["item"][batch["neg"]]
        loss += L_W * 0.5 * sum((x**2).sum() for x in rows)
        return loss, walk(p, normalised(formulas.matrix(catalog)))

    return compute


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pruning", "drop"), [("degree", 0.0), *((pruning, 0.3) for pruning in layergcn.PRUNINGS)]
)
def test_equals_the_formula(pruning, drop):
    with jax.enable_x64(True):
        catalog = formulas.catalog()
        bought = formulas.matrix(catalog)
        options = dict(dim=5, layers=3, drop=drop, pruning=pruning)
        draw, variables = epochs(catalog, options)
        epoch = jax.jit(draw)(variables, jax.random.key(1))
        block = np.asarray(dense(epoch))
        left = (block > 0).astype(float)
        assert (left <= bought).all()
        assert left.sum() == int((1 - drop) * bought.sum())
        np.testing.assert_allclose(block, normalised(left), rtol=1e-12)
        expected = formula(catalog, 3, block)
        formulas.check(layergcn.LayerGCN, catalog, options, expected, epoch=epoch, l_w=L_W)


@pytest.mark.slow
def test_which_edges_are_pruned():
    """By degree, edges between popular nodes go first; mixed is half of the one, half the other."""
    catalog = formulas.catalog()
    weights = normalised(formulas.matrix(catalog))
    there = weights > 0
    heavy = weights > np.median(weights[there])
    keys = jax.random.split(jax.random.key(0), 600)
    shares = {}
    for pruning in layergcn.PRUNINGS:
        draw, variables = epochs(catalog, dict(dim=4, layers=1, drop=0.5, pruning=pruning))
        kept = jax.vmap(lambda v, key, draw=draw: dense(draw(v, key)) > 0, in_axes=(None, 0))
        often = np.asarray(jax.jit(kept)(variables, keys)).mean(axis=0)
        shares[pruning] = often[heavy].mean() - often[there & ~heavy].mean()
    assert shares["degree"] > 0.1
    assert abs(shares["random"]) < 0.02
    assert abs(shares["mixed"] - shares["degree"] / 2) < 0.03


def test_bad_options():
    for option in (dict(drop=1.0), dict(layers=0), dict(pruning="none")):
        (name,) = option
        with pytest.raises(InputError, match=f"{name}="):
            layergcn.LayerGCN(formulas.catalog(), dim=4, **option, rngs=nnx.Rngs(0))
