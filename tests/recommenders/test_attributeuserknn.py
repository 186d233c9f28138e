"""AttributeUserKNN's profiles and scores against dictionaries of users, as Elliot builds them.

`profile_of` transcribes Elliot's `compute_binary_profile` and, with the sum that its dictionary
comprehension loses, its TFIDF; what follows is UserKNN's formula.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recommenders.test_userknn import ALPHA, BETA, SHRINK, catalog_of, drawn, weights_of

from mmjax.core.errors import InputError
from mmjax.recommenders import attributeuserknn, base, itemknn

USERS, ITEMS, K = 24, 18, 5
SLOTS = (4, 3)  # columns of each


@pytest.fixture(scope="module")
def ratings():
    rows = drawn(3, USERS, ITEMS)
    rows[2] = 0  # nothing is known of this user
    rows[5] = 4  # has every item
    rows[7] = 0
    rows[7, -1] = 3  # has only the item that is not described
    return rows


@pytest.fixture(scope="module")
def hot():
    """One-hot in both slots and a tag that all have; the last item is not described."""
    rng = np.random.default_rng(1)
    rows = np.hstack([np.eye(n)[rng.integers(n, size=ITEMS)] for n in SLOTS])
    rows = np.hstack([rows, np.ones((ITEMS, 1))])
    rows[-1] = 0
    return rows * rng.uniform(0.5, 1.5, rows.shape)  # of any strength, so that no two users tie


def profile_of(ratings, hot, how):
    """[U, A], one user and one attribute at a time."""
    items = {i: np.flatnonzero(row) for i, row in enumerate(hot) if row.any()}
    value = {i: {f: hot[i, f] for f in features} for i, features in items.items()}
    if how == "tfidf":
        having = {f: sum(f in features for features in items.values()) for f in range(hot.shape[1])}
        idf = {f: math.log(len(items) / n) for f, n in having.items()}
        for i, features in items.items():
            weighed = {f: hot[i, f] * idf[f] for f in features}
            length = math.sqrt(sum(w**2 for w in weighed.values()))
            value[i] = {f: w / length for f, w in weighed.items()}
    profiles = np.zeros((len(ratings), hot.shape[1]))
    for u, row in enumerate(ratings):
        for i in np.flatnonzero(row):
            for f, v in value.get(i, {}).items():
                profiles[u, f] += v / (row > 0).sum()
    return profiles


CASES = [(name, how) for name in itemknn.SIMILARITIES for how in attributeuserknn.PROFILES]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "how"), CASES)
@pytest.mark.parametrize("neighbours_of", ["user", "neighbour"])
def test_scores_equal_the_formula(ratings, hot, name, how, neighbours_of, monkeypatch):
    monkeypatch.setattr(itemknn, "ENTRIES", 5 * USERS)  # several blocks of users
    profiles = profile_of(ratings, hot, how)
    keep_self = neighbours_of == "neighbour"
    want = weights_of(profiles, name, K, neighbours_of, keep_self) @ ratings
    with jax.enable_x64(True):
        features = {"a": hot[:, :4], "b": hot[:, 4:]}
        catalog = base.Catalog(**vars(catalog_of(ratings)) | {"features": features})
        model = attributeuserknn.AttributeUserKNN(
            catalog,
            neighbours=K,
            similarity=name,
            profile=how,
            shrink=SHRINK,
            alpha=ALPHA,
            beta=BETA,
            implicit=False,
            neighbours_of=neighbours_of,
            keep_self=keep_self,
        )
        got = model.scores(model.tables(), {"user": jnp.arange(USERS)})
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-9 * want.max())
    assert not np.asarray(got)[[2, 7]].any()  # nothing to be compared by


def test_features_that_are_no_attributes(ratings):
    """Of any modality; a user without similarity comes before one who is opposite."""
    features = {"image": np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.9, 0.1]], np.float32)}
    rows = np.eye(4)
    catalog = base.Catalog(**vars(catalog_of(rows)) | {"features": features})
    model = attributeuserknn.AttributeUserKNN(catalog, neighbours=2, similarity="cosine")
    scores = model.scores(model.tables(), {"user": jnp.arange(4)})
    near = 0.9 / math.hypot(0.9, 0.1)
    # Of user 0, user 3 is the first neighbour and user 2, of similarity 0, the second; not user 1.
    np.testing.assert_allclose(scores[0], [0, 0, 0, near], atol=1e-6)
    # Of user 1, user 2 is the first and user 3 the second.
    np.testing.assert_allclose(scores[1], [0, 0, 0, -near], atol=1e-6)


@pytest.mark.parametrize("how", attributeuserknn.PROFILES)
def test_one_item_one_user_and_more_neighbours_than_users(how):
    catalog = base.Catalog(
        **vars(catalog_of(np.ones((1, 1)))) | {"features": {"a": np.ones((1, 1), np.float32)}}
    )
    for keep_self in (False, True):
        model = attributeuserknn.AttributeUserKNN(
            catalog, neighbours=9, profile=how, keep_self=keep_self
        )
        scores = model.scores(model.tables(), {"user": jnp.array([0])})
        # What every item has weighs nothing in tfidf.
        assert float(scores[0, 0]) == (1.0 if keep_self and how == "binary" else 0.0)


def test_bad_options(ratings, hot):
    with pytest.raises(InputError, match="needs item features"):
        attributeuserknn.AttributeUserKNN(catalog_of(ratings))
    catalog = base.Catalog(**vars(catalog_of(ratings)) | {"features": {"a": hot}})
    with pytest.raises(InputError, match="did you mean 'tfidf'"):
        attributeuserknn.AttributeUserKNN(catalog, profile="tf-idf")
    with pytest.raises(InputError, match="neighbours=0 must be at least 1"):
        attributeuserknn.AttributeUserKNN(catalog, neighbours=0)
