"""SLMRec against method.md 7.13 written out with dense matrices, in float64.

Levels of the contrast for one and for three modalities are those of the authors' code on data sets
with as many (kwai; movielens and tiktok).
"""

import dataclasses

import jax
import numpy as np
import pytest
from support import formulas
from support.formulas import unit

from mmjax.recommenders import slmrec

DIM, TAU, SSL_TAU, SSL = 6, 0.4, 0.8, 0.3
LEVELS = {1: [0], 2: [0, None, 1], 3: [0, 1, 2]}  # the modality of each level


def catalog_of(count):
    if count == 1:
        return formulas.catalog("textual")
    catalog = formulas.catalog()
    if count == 2:
        return catalog
    sound = np.random.default_rng(5).normal(size=(formulas.ITEMS, 4))
    there = np.ones(formulas.ITEMS, bool)
    return dataclasses.replace(
        catalog,
        features=catalog.features | {"audio": sound},
        present=catalog.present | {"audio": there},
    )


def formula(catalog, layers):
    adjacency = formulas.adjacency(catalog)

    def compute(p, batch):
        def linear(name, x):
            return x @ p[f"{name}.kernel"] + p.get(f"{name}.bias", 0)

        starts = [p["item"]]
        for m, (name, features) in enumerate(catalog.features.items()):
            x = unit(np.asarray(features)) @ p[f"contents.{m}.weight"].T + p[f"contents.{m}.bias"]
            starts.append(x * catalog.present[name][:, None])
        towers = []
        for start in starts:
            state = total = np.vstack([p["user"], start])
            for _ in range(layers):
                state = adjacency @ state
                total = total + state
            towers.append(np.split(total / (layers + 1), [formulas.USERS]))
        users = linear("fuse_users", np.hstack([u for u, _ in towers]))
        items = linear("fuse_items", np.hstack([i for _, i in towers]))
        loss = formulas.info_nce(users[batch["user"]], items[batch["pos"]], TAU)
        y = towers[0][1][batch["pos"]]
        for level, m in enumerate(LEVELS[len(catalog.features)]):
            y = linear(f"steps.{level}", y)
            if m is None:
                continue
            logits = y @ linear(f"heads.{m}", towers[m + 1][1][batch["pos"]]).T / SSL_TAU
            apart = np.log(np.exp(logits).sum(axis=1)) - np.diagonal(logits)
            there = list(catalog.present.values())[m][batch["pos"]]
            loss = loss + SSL * (there * apart).mean()
        return loss, (users, items)

    return compute


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3])
def test_equals_the_formula(count):
    layers = 4 - count  # odd and even
    with jax.enable_x64(True):
        catalog = catalog_of(count)
        formulas.check(
            slmrec.SLMRec,
            catalog,
            dict(dim=DIM, layers=layers, eps=0.0),
            formula(catalog, layers),
            ssl_weight=SSL,
            temperature=TAU,
            ssl_temperature=SSL_TAU,
        )
