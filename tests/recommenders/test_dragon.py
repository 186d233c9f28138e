"""DRAGON against MMRec's formulas (dragon.py: get_knn_adj_mat, forward, calculate_loss) written out
with dense matrices, in float64. What it shares with DualGNN is in test_dualgnn."""

import jax
import numpy as np
import pytest
from recommenders.test_dualgnn import dense, peers, penalty, reads, towers
from support import formulas

from mmjax.core.errors import InputError
from mmjax.recommenders import dragon
from mmjax.recommenders.layers import user_graph

PEERS, TOP_K = 6, 3


def similar(catalog, shares):
    """sum_m c_m S_m: the most similar by cosine, each 1 / (k + 1e-7)."""
    total = 0
    for name, features in catalog.features.items():
        there = catalog.present[name]
        cosines = formulas.unit(features) @ formulas.unit(features).T
        cosines = np.where(there[None], cosines, -np.inf)
        kept = np.zeros_like(cosines)
        for item in np.flatnonzero(there):
            kept[item, np.argsort(-cosines[item], kind="stable")[:TOP_K]] = 1 / (TOP_K + 1e-7)
        total = total + shares[name] * kept
    return total


def formula(catalog, l_w, trained_on, shares, item_layers):
    read = reads(peers(catalog, PEERS))
    walk = np.linalg.matrix_power(similar(catalog, shares), item_layers)

    def compute(p, batch):
        users, items = zip(
            *(np.split(x, [formulas.USERS]) for x in towers(p, catalog, 2)), strict=True
        )
        if len(users) > 1:
            users = [p["towers.shares"][:, [m]] * x for m, x in enumerate(users)]
        y, item = np.hstack(users), np.hstack(items)
        item = item + walk @ item
        loss = formulas.bpr(y + trained_on @ y, item, batch) / np.log(2)
        loss += l_w * penalty(p, len(users), batch["user"])
        return loss, (y + read @ y, item)

    return compute


@pytest.mark.slow
@pytest.mark.parametrize("case", ["paper", "mmrec", "one modality"])
def test_equals_the_formula(case):
    with jax.enable_x64(True):
        catalog = formulas.catalog(*(["textual"] if case == "one modality" else []))
        options = dict(dim=4, peers=PEERS, top_k=TOP_K, fill=case == "mmrec", item_layers=2)
        shares = {"textual": 1.0}
        if case != "one modality":
            options["weights"] = {"visual": 0.1}
            shares = {"visual": 0.1, "textual": 0.9}
        read = user_graph.Peers(catalog, PEERS, fill=options["fill"], dtype=np.float64)
        drawn = read.graph(jax.random.key(0))
        wanted = formula(catalog, 0.3, dense(drawn), shares, 2)
        formulas.check(dragon.DRAGON, catalog, options, wanted, l_w=0.3)


def test_options_that_cannot_be():
    catalog = formulas.catalog()
    with pytest.raises(InputError, match="did you mean 'visual'"):
        formulas.build(dragon.DRAGON, catalog, dict(dim=4, weights={"visul": 0.1}), None)
    with pytest.raises(InputError, match="top_k=14 neighbours of 13 items"):
        formulas.build(dragon.DRAGON, catalog, dict(dim=4, top_k=14), None)
