"""UserKNN's neighbours and scores against its formula, pair of users by pair of users.

The similarities are those of method.md 7.11 (cosine, asym, dot, jaccard, tversky) between rows of
R; `neighbours_of="neighbour"` transcribes upstream Elliot, which keeps the k largest of each column
of W and then takes W R by rows.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.core.errors import InputError
from mmjax.recommenders import base, itemknn, userknn

ALPHA, BETA, SHRINK = 0.3, 0.8, 0.5


def catalog_of(ratings):
    user, item = np.nonzero(ratings)
    return base.Catalog(
        n_users=ratings.shape[0],
        n_items=ratings.shape[1],
        train_user=user.astype(np.int32),
        train_item=item.astype(np.int32),
        train_rating=ratings[user, item].astype(np.float32),
    )


def drawn(seed, users, items, density=0.3):
    rng = np.random.default_rng(seed)
    return rng.integers(1, 6, (users, items)) * (rng.random((users, items)) < density) * 1.0


def weight(name, x, y):
    """Of a scored user's row x and a neighbour's row y."""
    both = x @ y
    if name in ("jaccard", "tversky"):
        a, b = (1, 1) if name == "jaccard" else (ALPHA, BETA)
        both = float(((x != 0) & (y != 0)).sum())
        below = a * ((x != 0).sum() - both) + b * ((y != 0).sum() - both) + both + SHRINK
    elif name == "dot":
        below = 1 + SHRINK
    elif name == "cosine":
        below = math.sqrt(x @ x) * math.sqrt(y @ y) + SHRINK
    else:
        below = (x @ x) ** ALPHA * (y @ y) ** (1 - ALPHA) + SHRINK
    return both / below


def keep_largest(weights, k):
    """Of each row, of what is not zero; ties to the lower user."""
    kept = np.zeros_like(weights)
    for u, row in enumerate(weights):
        best = sorted(np.flatnonzero(row), key=lambda v: (-round(row[v], 12), v))[:k]
        kept[u, best] = row[best]
    return kept


def weights_of(rows, name, k, neighbours_of, keep_self):
    """W [user, neighbour] of users that are `rows`."""
    users = range(len(rows))
    weights = np.array([[weight(name, rows[u], rows[v]) for v in users] for u in users])
    if not keep_self:
        np.fill_diagonal(weights, 0)
    if neighbours_of == "user":
        return keep_largest(weights, k)
    return keep_largest(weights.T, k).T


def built(catalog, **options):
    model = userknn.UserKNN(catalog, **options)
    return model.scores(model.tables(), {"user": jnp.arange(catalog.n_users)})


CASES = [(name, rule, True) for name in itemknn.SIMILARITIES for rule in userknn.SIDES]
CASES += [("cosine", rule, False) for rule in userknn.SIDES]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "neighbours_of", "double"), CASES)
def test_scores_equal_the_formula(name, neighbours_of, double, monkeypatch):
    monkeypatch.setattr(itemknn, "ENTRIES", 90)  # several blocks of users
    monkeypatch.setattr(itemknn, "STEP", 3)  # longer histories take several steps
    ratings = drawn(0, 30, 17)
    implicit = keep_self = neighbours_of == "neighbour"
    x = (ratings > 0).astype(float) if implicit else ratings
    want = weights_of(x, name, 4, neighbours_of, keep_self) @ x
    with jax.enable_x64(double):
        got = built(
            catalog_of(ratings),
            neighbours=4,
            neighbours_of=neighbours_of,
            similarity=name,
            implicit=implicit,
            keep_self=keep_self,
            shrink=SHRINK,
            alpha=ALPHA,
            beta=BETA,
        )
    assert got.dtype == (np.float64 if double else np.float32)
    np.testing.assert_allclose(got, want, rtol=0, atol=(1e-9 if double else 1e-6) * want.max())


@pytest.mark.slow
def test_the_two_rules_differ_where_hubs_are():
    """User 0 is most similar to all others, who are hardly similar to each other."""
    ratings = np.eye(6)
    ratings[0] = 1
    scores = built(catalog_of(ratings), neighbours=1, neighbours_of="neighbour", similarity="dot")
    np.testing.assert_allclose(scores[0], [0, 1, 1, 1, 1, 1])  # all five have 0 as their nearest
    # Of 0's own neighbours, all alike, the lowest is kept: user 1; the four others find nobody.
    np.testing.assert_allclose(scores[1], np.ones(6))
    assert not np.asarray(scores[2:]).any()
    scores = built(catalog_of(ratings), neighbours=1, neighbours_of="user", similarity="dot")
    np.testing.assert_allclose(scores[0], [0, 1, 0, 0, 0, 0])
    np.testing.assert_allclose(scores[1:], np.ones((5, 6)))


@given(
    st.integers(0, 10_000),
    st.integers(1, 7),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.4, 1.0]),
    st.integers(1, 9),
    st.sampled_from(itemknn.SIMILARITIES),
    st.sampled_from(["user", "neighbour"]),
    st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_weights_of_any_small_catalogue(seed, users, items, density, k, name, rule, keep_self):
    ratings = drawn(seed, users, items, density)
    got = userknn.similar_users(
        itemknn.profile_of(catalog_of(ratings), implicit=False),
        neighbours=k,
        similarity=name,
        constants=(ALPHA, BETA, SHRINK),
        neighbours_of=rule,
        keep_self=keep_self,
    )
    want = weights_of(ratings, name, k, rule, keep_self)
    np.testing.assert_allclose(got.toarray(), want, rtol=1e-9)
    side = np.count_nonzero(got.toarray(), axis=1 if rule == "user" else 0)
    assert (side <= min(k, users - (not keep_self))).all()


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (5, 1)])
@pytest.mark.parametrize("density", [0.0, 1.0])
def test_one_user_one_item_no_history_and_every_item(shape, density):
    ratings = drawn(0, *shape, density)
    for keep_self in (False, True):
        got = built(catalog_of(ratings), neighbours=9, similarity="dot", keep_self=keep_self)
        neighbours = shape[0] if keep_self else shape[0] - 1
        np.testing.assert_allclose(got, np.full(shape, neighbours * shape[1] * density))


@pytest.mark.slow
def test_users_side_by_side_as_on_an_accelerator(monkeypatch):
    monkeypatch.setattr(itemknn, "STEP", 4)
    ratings = drawn(2, 30, 17)
    ratings[3] = 0
    ratings[4] = 5
    one_by_one = built(catalog_of(ratings), neighbours=5, neighbours_of="neighbour")
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *a, cpu, default: default(*a))
    abreast = built(catalog_of(ratings), neighbours=5, neighbours_of="neighbour")
    np.testing.assert_allclose(abreast, one_by_one, atol=1e-6)
    assert not np.asarray(abreast[3]).any()


def test_bad_options():
    catalog = catalog_of(drawn(0, 5, 5))
    with pytest.raises(InputError, match="neighbours=0 must be at least 1"):
        userknn.UserKNN(catalog, neighbours=0)
    with pytest.raises(InputError, match="did you mean 'neighbour'"):
        userknn.UserKNN(catalog, neighbours_of="neighbours")
    with pytest.raises(InputError, match="did you mean 'cosine'"):
        userknn.UserKNN(catalog, similarity="cosin")
