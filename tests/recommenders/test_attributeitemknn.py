"""AttributeItemKNN's weighting and scores against dense formulas written out item by item."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

from mmjax.core.errors import InputError
from mmjax.recommenders import attributeitemknn, base, itemknn

USERS, ITEMS, K, WEIGHT = 25, 18, 5, 1.7
WEIGHTINGS = attributeitemknn.WEIGHTINGS
SLOTS = (4, 3)  # columns of each


@pytest.fixture(scope="module")
def ratings():
    rng = np.random.default_rng(0)
    return rng.integers(1, 6, (USERS, ITEMS)) * (rng.random((USERS, ITEMS)) < 0.3).astype(float)


@pytest.fixture(scope="module")
def hot():
    """One-hot in both slots; the last item has no description."""
    rng = np.random.default_rng(1)
    rows = np.hstack([np.eye(n)[rng.integers(n, size=ITEMS)] for n in SLOTS])
    rows[-1] = 0
    return rows


def catalog_of(ratings, features):
    user, item = np.nonzero(ratings)
    return base.Catalog(
        n_users=USERS,
        n_items=ITEMS,
        train_user=user.astype(np.int32),
        train_item=item.astype(np.int32),
        train_rating=ratings[user, item].astype(np.float32),
        features=features,
    )


def weighed(rows, how):
    """Entry by entry, from the formulas."""
    out = rows.copy()
    lengths = rows.sum(1)
    for i, n in zip(*np.nonzero(rows), strict=True):
        v, df = rows[i, n], (rows[:, n] != 0).sum()
        if how == "tfidf":
            out[i, n] = math.sqrt(v) * math.log(ITEMS / (1 + df))
        if how == "bm25":
            norm = 1.2 * (1 - 0.75 + 0.75 * lengths[i] / lengths.mean())
            out[i, n] = math.log((ITEMS - df + 0.5) / (df + 0.5)) * v * (1.2 + 1) / (v + norm)
    return out


def weights_of(rows, name, alpha, beta, shrink, by_history, keep_self):
    """[history, candidate]: pair by pair, then the K largest, ties to the lower item."""
    full = np.zeros((ITEMS, ITEMS))
    for j in range(ITEMS):
        for i in range(ITEMS):
            x, y = rows[j], rows[i]
            both = x @ y
            if name in ("jaccard", "tversky"):
                a, b = (1, 1) if name == "jaccard" else (alpha, beta)
                both = ((x != 0) & (y != 0)).sum()
                only = (x != 0).sum() - both, (y != 0).sum() - both
                below = a * only[0] + b * only[1] + both + shrink
            elif name == "dot":
                below = 1 + shrink
            elif name == "cosine":
                below = math.sqrt((x @ x) * (y @ y)) + shrink
            else:
                below = (x @ x) ** alpha * (y @ y) ** (1 - alpha) + shrink
            full[j, i] = both / below if below and both else 0
            if j == i and not keep_self:
                full[j, i] = 0
    kept = np.zeros_like(full)
    for line in range(ITEMS):
        at = (line, slice(None)) if by_history else (slice(None), line)
        stored = [n for n in range(ITEMS) if full[at][n] != 0]
        best = sorted(stored, key=lambda n: (-round(full[at][n], 12), n))[:K]
        kept[at][best] = full[at][best]
    return kept


CASES = [(name, how, False) for name in itemknn.SIMILARITIES for how in WEIGHTINGS]
CASES += [("cosine", how, True) for how in WEIGHTINGS]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "how", "constant"), CASES)
@pytest.mark.parametrize("rule", ["candidate", "history"])
def test_scores_equal_the_formula(ratings, hot, name, how, rule, constant):
    alpha, beta, shrink, keep_self = 0.3, 0.8, 0.5, rule == "history"
    block = hot
    if constant:
        block = np.array([[(row == 0).sum(), (row == 1).sum()] for row in hot], float)
    rows = weighed(np.hstack([WEIGHT * block, ratings.T]), how)
    wanted = weights_of(rows, name, alpha, beta, shrink, rule == "history", keep_self)
    model = attributeitemknn.AttributeItemKNN(
        catalog_of(ratings, {"a": hot[:, :4], "b": hot[:, 4:]}),
        neighbours=K,
        similarity=name,
        weight=WEIGHT,
        feature_weighting=how,
        shrink=shrink,
        alpha=alpha,
        beta=beta,
        neighbours_of=rule,
        keep_self=keep_self,
        reproduce_constant_attributes=constant,
    )
    scores = model.scores(model.tables(), {"user": jnp.arange(USERS)})
    wanted = ratings @ wanted
    scale = max(1, np.abs(wanted).max())
    np.testing.assert_allclose(scores / scale, wanted / scale, atol=1e-6, rtol=0)


def test_without_weight_it_is_itemknn(ratings, hot):
    catalog = catalog_of(ratings, {"attributes": hot})
    plain = itemknn.ItemKNN(catalog, neighbours=K, implicit=False)
    mine = attributeitemknn.AttributeItemKNN(catalog, neighbours=K, weight=0.0)
    users = {"user": jnp.arange(USERS)}
    np.testing.assert_array_equal(
        mine.scores(mine.tables(), users), plain.scores(plain.tables(), users)
    )


@pytest.mark.slow
def test_attributes_reach_items_that_nobody_bought(ratings, hot):
    """Of a new item only the attributes are known; the published code's block says nothing."""
    sold = ratings.copy()
    sold[:, 3] = 0
    catalog = catalog_of(sold, {"attributes": hot})
    users = {"user": jnp.arange(USERS)}
    options = dict(neighbours=ITEMS, weight=3.0, similarity="dot")

    def scores(**more):
        model = attributeitemknn.AttributeItemKNN(catalog, **options, **more)
        return np.asarray(model.scores(model.tables(), users))[:, 3]

    alike = (hot @ hot[3])[None] * 9.0  # [1, I] with weight^2
    np.testing.assert_allclose(scores(), (sold * alike).sum(1), rtol=1e-5)
    described = sold[:, :-1].sum(1)  # all but the last have (5, 2) of (zeros, ones)
    wanted = 9.0 * (described * (5 * 5 + 2 * 2) + sold[:, -1] * (7 * 5))
    np.testing.assert_allclose(scores(reproduce_constant_attributes=True), wanted, rtol=1e-5)


def test_what_attributes_cannot_be(ratings, hot):
    catalog = catalog_of(ratings, {"attributes": hot * 0.5})
    with pytest.raises(InputError, match="all 0 or 1"):
        attributeitemknn.AttributeItemKNN(catalog, reproduce_constant_attributes=True)
    catalog = catalog_of(ratings, {"attributes": -hot})
    with pytest.raises(InputError, match="not negative"):
        attributeitemknn.AttributeItemKNN(catalog, feature_weighting="bm25")
    with pytest.raises(InputError, match="needs item features"):
        attributeitemknn.AttributeItemKNN(catalog_of(ratings, {}))
    with pytest.raises(InputError, match="did you mean 'tfidf'"):
        attributeitemknn.AttributeItemKNN(catalog, feature_weighting="tf-idf")
    with pytest.raises(InputError, match="neighbours=0 must be at least 1"):
        attributeitemknn.AttributeItemKNN(catalog, neighbours=0)


def test_blocks_cover_all_rows_and_bound_their_products(hot, monkeypatch):
    monkeypatch.setattr(itemknn, "ENTRIES", 40)
    items = sp.csr_matrix(hot)
    spans = itemknn._blocks(items)
    assert [row for start, stop in spans for row in range(start, stop)] == list(range(ITEMS))
    assert len(spans) > 2
    for start, stop in spans:
        assert (items[start:stop] @ items.T).nnz <= 40 + ITEMS
