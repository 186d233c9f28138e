"""DualGNN against MMRec's formulas (dualgnn.py: GCN, topk_sample, forward, calculate_loss) written
out with dense matrices, in float64; and the lists of peers that it and DRAGON draw from."""

import jax
import numpy as np
import pytest
from support import formulas
from support.formulas import mean_squares

from mmjax.core.errors import InputError
from mmjax.ops import graph
from mmjax.recommenders import base, dualgnn
from mmjax.recommenders.layers import user_graph

PEERS = 6


def symmetric(bought: np.ndarray) -> np.ndarray:
    """D^-1/2 A D^-1/2 of all nodes [U + I, U + I]; nodes without edges have zeros."""
    n_users, n_items = bought.shape
    whole = np.block([[np.zeros((n_users,) * 2), bought], [bought.T, np.zeros((n_items,) * 2)]])
    degree = whole.sum(1)
    scale = np.where(degree > 0, 1 / np.sqrt(np.maximum(degree, 1)), 0)
    return scale[:, None] * whole * scale


def towers(p: dict, catalog: base.Catalog, layers: int) -> list[np.ndarray]:
    """The states [U + I, D] of each modality that DualGNN and DRAGON share: MMRec's GCN class."""
    adjacency, states = symmetric(formulas.matrix(catalog)), []
    for m, (name, features) in enumerate(catalog.features.items()):
        there = catalog.present[name][:, None]
        hidden = features @ p[f"towers.hidden.{m}.weight"].T + p[f"towers.hidden.{m}.bias"]
        hidden = formulas.leaky(hidden * there)
        items = hidden @ p[f"towers.out.{m}.kernel"] + p[f"towers.out.{m}.bias"]
        total = x = formulas.unit(np.vstack([p[f"towers.preferences.{m}"], items * there]))
        for _ in range(layers):
            x = adjacency @ x
            total = total + x
        states.append(total)
    return states


def peers(catalog: base.Catalog, count: int) -> list[list[tuple[int, int]]]:
    """Of each user the `count` others with most items in common: (other, how many), most first."""
    bought = formulas.matrix(catalog)
    lists = []
    for user in range(formulas.USERS):
        common = [(v, int(bought[user] @ bought[v])) for v in range(formulas.USERS) if v != user]
        lists.append(sorted([c for c in common if c[1]], key=lambda c: (-c[1], c[0]))[:count])
    return lists


def reads(lists: list[list[tuple[int, int]]]) -> np.ndarray:
    """G [U, U]: the softmax over each list, whose members may stand in it more than once."""
    dense = np.zeros((formulas.USERS,) * 2)
    for user, members in enumerate(lists):
        for other, common in members:
            dense[user, other] += np.exp(common) / sum(np.exp(c) for _, c in members)
    return dense


def dense(built):
    matrix = np.zeros(built.shape)
    matrix[built.forward.rows, built.forward.columns] = built.forward.values
    return matrix


def penalty(p, count, user):
    total = sum(mean_squares(p[f"towers.preferences.{m}"][user]) for m in range(count))
    return total + (mean_squares(p["towers.shares"]) if count > 1 else 0)


def formula(catalog, l_w, trained_on, in_place):
    read = reads(peers(catalog, PEERS))

    def compute(p, batch):
        users, items = zip(
            *(np.split(x, [formulas.USERS]) for x in towers(p, catalog, 2)), strict=True
        )
        if in_place:
            users = (sum(users), *users[1:])
        y = users[0]
        if len(users) > 1:
            y = sum(p["towers.shares"][:, [m]] * x for m, x in enumerate(users))
        loss = formulas.bpr(y + trained_on @ y, sum(items), batch) / np.log(2)
        loss += l_w * penalty(p, len(users), batch["user"])
        return loss, (y + read @ y, sum(items))

    return compute


@pytest.mark.slow
@pytest.mark.parametrize("case", ["paper", "mmrec", "one modality"])
def test_equals_the_formula(case):
    with jax.enable_x64(True):
        catalog = formulas.catalog(*(["textual"] if case == "one modality" else []))
        mmrec = case == "mmrec"
        options = dict(dim=4, peers=PEERS, fill=mmrec, sum_in_place=mmrec)
        drawn = user_graph.Peers(catalog, PEERS, fill=mmrec, dtype=np.float64).graph(
            jax.random.key(0)
        )
        read = reads(peers(catalog, PEERS))
        assert (np.abs(dense(drawn) - read).max() > 0.01) == mmrec
        wanted = formula(catalog, 0.3, dense(drawn), mmrec)
        formulas.check(dualgnn.DualGNN, catalog, options, wanted, l_w=0.3)


@pytest.mark.slow
def test_filled_lists_are_those_of_an_urn():
    """MMRec's topk_sample: a list is filled with its own members, those appended included."""
    catalog, count = formulas.catalog(), 12
    filling = user_graph.Peers(catalog, count, fill=True, dtype=np.float32)
    side = filling.pattern.get_value().forward
    lists = peers(catalog, count)
    assert [len(members) for members in lists] == list(np.diff(side.starts))
    assert len(lists[-1]) == 0 < min(len(members) for members in lists[:-1]) < count
    keys = jax.random.split(jax.random.key(0), 2000)
    times = np.asarray(jax.jit(jax.vmap(filling._times))(keys))  # [draws, E]
    for user, members in enumerate(lists[:-1]):
        mine = times[:, side.starts[user] : side.starts[user + 1]]
        np.testing.assert_array_equal(mine.sum(1), count)
        assert mine.min() >= 1
        if len(members) == count:
            assert (mine == 1).all()
            continue
        # Polya's urn from one ball of each colour: every way to share the rest is as likely, so
        # that one peer has none of the m others with probability (n - 1) / (m + n - 1).
        n, m = len(members), count - len(members)
        alone = (mine == 1).mean(0)
        np.testing.assert_allclose(alone, (n - 1) / (m + n - 1), atol=0.05)
    weights = dense(filling.graph(keys[0]))
    filled = [
        [member for member, n in zip(sorted(members), row, strict=True) for _ in range(int(n))]
        for members, row in zip(lists, np.split(times[0], side.starts[1:-1]), strict=True)
    ]
    np.testing.assert_allclose(weights, reads(filled), atol=1e-6)


@pytest.mark.parametrize("budget", [1, 30, 1000])
def test_what_users_have_in_common_by_blocks(budget):
    catalog = formulas.catalog()
    matrix = graph.incidence(catalog.train_user, catalog.train_item, catalog.shape)
    found = graph.in_common(matrix, top_k=4, itself=False, budget=budget).toarray()
    wanted = np.zeros_like(found)
    for user, members in enumerate(peers(catalog, 4)):
        for other, common in members:
            wanted[user, other] = common
    np.testing.assert_array_equal(found, wanted)
    with_itself = graph.in_common(matrix, top_k=1, budget=budget).toarray()
    bought = formulas.matrix(catalog)
    assert with_itself[0].argmax() == min(np.flatnonzero(bought @ bought[0] == bought[0].sum()))


def test_options_that_cannot_be():
    catalog = formulas.catalog()
    with pytest.raises(InputError, match="peers=0 must be at least 1"):
        user_graph.Peers(catalog, 0, fill=False, dtype=np.float32)
    with pytest.raises(InputError, match="layers=-1 must not be negative"):
        user_graph.Towers(catalog, 4, layers=-1, rngs=None)
