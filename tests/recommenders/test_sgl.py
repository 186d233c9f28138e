"""SGL against method.md 7.12 written out with dense matrices, in float64, and its views."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import formulas
from support.formulas import unit

from mmjax.core.errors import InputError
from mmjax.ops import contrastive, graph
from mmjax.recommenders import sgl

HYPERS = dict(l_w=0.3, cl_weight=0.7, temperature=0.4)


def normalised(bought):
    of_user, of_item = (np.maximum(bought.sum(axis), 1) ** -0.5 for axis in (1, 0))
    return of_user[:, None] * bought * of_item


def dense(adjacency):
    """[U, I], once as it is and once as items read it."""
    one = graph.propagate(adjacency, jnp.eye(adjacency.shape[1]))
    other = graph.propagate(adjacency.flip(), jnp.eye(adjacency.shape[0])).T
    np.testing.assert_array_equal(one, other)
    return np.asarray(one)


def epoch_of(catalog, options, seed=3):
    graphdef, variables = nnx.split(sgl.SGL(catalog, dim=4, **options, rngs=nnx.Rngs(0)))
    draw = jax.jit(lambda variables, key: nnx.merge(graphdef, variables).epoch(key))
    return draw(variables, jax.random.key(seed))


def formula(catalog, layers, views):
    bought = formulas.matrix(catalog)

    def states(p, graphs):
        user, item = p["user"], p["item"]
        users, items = user, item
        for block in graphs:
            user, item = block @ item, block.T @ user
            users, items = users + user, items + item
        return users / (layers + 1), items / (layers + 1)

    def nce(one, other, rows):
        z1, z2 = unit(one)[rows], unit(other)
        logits = (z1 @ z2.T - (z1 * z2[rows]).sum(axis=1)[:, None]) / HYPERS["temperature"]
        return np.log(np.exp(logits).sum(axis=1)).sum()

    def compute(p, batch):
        whole = normalised(bought)
        users, items = states(p, [whole] * layers)
        size = len(batch["user"])
        loss = formulas.bpr(users, items, batch) * size
        rows = p["user"][batch["user"]], p["item"][batch["pos"]], p["item"][batch["neg"]]
        loss += HYPERS["l_w"] * 0.5 * sum((x**2).sum() for x in rows)
        one, other = (states(p, view * (layers // len(view))) for view in views)
        loss += HYPERS["cl_weight"] * nce(one[0], other[0], batch["user"])
        loss += HYPERS["cl_weight"] * nce(one[1], other[1], batch["pos"])
        return loss, (users, items)

    return compute


@pytest.mark.slow
@pytest.mark.parametrize("kind", sgl.VIEWS)
def test_equals_the_formula(kind, monkeypatch):
    monkeypatch.setattr(contrastive, "CPU_LOGITS", 1)  # several blocks, the last one shorter
    with jax.enable_x64(True):
        catalog = formulas.catalog()
        options = dict(layers=2, views=kind, drop=0.3)
        epoch = epoch_of(catalog, options)
        views = [[dense(adjacency) for adjacency in view] for view in epoch["views"]]
        expected = formula(catalog, 2, views)
        formulas.check(sgl.SGL, catalog, options | {"dim": 5}, expected, epoch=epoch, **HYPERS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sgl.VIEWS)
def test_what_is_left_of_a_view_is_normalised_again(kind):
    catalog = formulas.catalog()
    bought = formulas.matrix(catalog)
    epoch = epoch_of(catalog, dict(layers=3, views=kind, drop=0.3))
    np.testing.assert_allclose(dense(epoch["whole"]), normalised(bought), rtol=1e-6)
    views = [[dense(adjacency) for adjacency in view] for view in epoch["views"]]
    assert [len(view) for view in views] == [3 if kind == "layers" else 1] * 2
    every = [*views[0], *views[1]]
    assert len({block.tobytes() for block in every}) == len(every)  # all different
    for block in every:
        left = (block > 0).astype(float)
        assert (left <= bought).all()
        np.testing.assert_allclose(block, normalised(left), rtol=1e-6)
        if kind == "nodes":
            # Who has nothing left was dropped, or has only what was.
            users, items = left.sum(1) > 0, left.sum(0) > 0
            assert (left == bought * users[:, None] * items).all()
            gone = (~users & (bought.sum(1) > 0)).sum(), (~items & (bought.sum(0) > 0)).sum()
            assert 0 < gone[0] <= 6 + 1  # round(.3 * 20), and those who had only what was dropped
            assert 0 < gone[1] <= 4 + 1
        else:
            assert left.sum() == bought.sum() - round(0.3 * bought.sum())


@pytest.mark.slow
def test_a_view_that_drops_nothing_is_the_whole_graph():
    epoch = epoch_of(formulas.catalog(), dict(layers=2, drop=0.0))
    for view in epoch["views"]:
        np.testing.assert_array_equal(dense(view[0]), dense(epoch["whole"]))


def test_bad_options():
    with pytest.raises(InputError, match=r"drop=1\.0"):
        sgl.SGL(formulas.catalog(), dim=4, drop=1.0, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="views='edge'; did you mean 'edges'"):
        sgl.SGL(formulas.catalog(), dim=4, views="edge", rngs=nnx.Rngs(0))
