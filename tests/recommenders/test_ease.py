"""EASE^R against the closed form of Steck, WWW 2019, and against the problem that it solves."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recommenders.test_userknn import catalog_of, drawn

from mmjax.core.errors import InputError
from mmjax.recommenders import base, ease, itemknn


def weights_of(x, l2):
    """P = (X^T X + l2)^-1; B = P / (-diag P), columns by columns, with a zero diagonal."""
    p = np.linalg.inv(x.T @ x + l2 * np.eye(x.shape[1]))
    b = p / -np.diag(p)[None]
    np.fill_diagonal(b, 0)
    return b


def solved(ratings, l2):
    return ease.solve(itemknn.profile_of(catalog_of(ratings), False), l2, np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("implicit", [True, False])
def test_scores_equal_the_formula(implicit, monkeypatch):
    monkeypatch.setattr(ease, "BLOCK", 7)
    monkeypatch.setattr(ease, "STEP", 3)
    ratings = drawn(0, 40, 30)
    x = (ratings > 0).astype(float) if implicit else ratings
    want = x @ weights_of(x, 2.5)
    users = {"user": jnp.arange(40)}
    for double in (True, False):
        with jax.enable_x64(double):
            model = ease.EASE(catalog_of(ratings), l2=2.5, implicit=implicit)
            one_by_one = model.scores(model.tables(), users)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(jax.lax, "platform_dependent", lambda *a, cpu, default: default(*a))
                abreast = model.scores(model.tables(), users)
        for got in (one_by_one, abreast):
            assert got.dtype == (np.float64 if double else np.float32)
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-9 if double else 1e-5)


def test_elliot_puts_counts_on_the_diagonal_of_a_gram_of_ratings():
    """With them the matrix need not be positive definite any more: it is inverted nevertheless."""
    ratings = drawn(0, 40, 30)
    gram = ratings.T @ ratings
    np.fill_diagonal(gram, (ratings > 0).sum(0) + 2.5)
    assert np.linalg.eigvalsh(gram)[0] < 0
    inverse = np.linalg.inv(gram)
    want = -inverse / np.diag(inverse)
    np.fill_diagonal(want, 0)
    with jax.enable_x64(True):
        model = ease.EASE(catalog_of(ratings), l2=2.5, implicit=False, diagonal="counts")
        np.testing.assert_allclose(model.tables(), want, atol=1e-9)
        one = [ease.EASE(catalog_of(ratings), l2=9.0, diagonal=d) for d in ("counts", "gram")]
        np.testing.assert_allclose(one[0].tables(), one[1].tables(), atol=1e-12)
    with pytest.raises(InputError, match="diagonal='count'; did you mean 'counts'"):
        ease.EASE(catalog_of(ratings), diagonal="count")


@given(
    st.integers(0, 10_000),
    st.integers(1, 9),
    st.integers(1, 11),
    st.sampled_from([0.0, 0.4, 1.0]),
    st.sampled_from([0.01, 1.0, 300.0]),
    st.integers(1, 6),
)
@settings(deadline=None, max_examples=60)
def test_weights_are_the_minimum(seed, users, items, density, l2, block):
    """The objective has no slope at B in any free entry, whatever the blocks; and it is convex."""
    ratings = drawn(seed, users, items, density)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ease, "BLOCK", block)
        weights = solved(ratings, l2)
    slope = ratings.T @ (ratings @ weights - ratings) + l2 * weights
    np.fill_diagonal(slope, 0)  # not free
    np.testing.assert_allclose(slope, 0, atol=1e-8 * max(1, np.abs(ratings.T @ ratings).max()))
    assert not np.diagonal(weights).any()


def test_users_with_every_item_without_history_and_items_that_nobody_has():
    ratings = (drawn(0, 12, 8) > 0).astype(float)
    ratings[3], ratings[4], ratings[:, 5] = 1, 0, 0
    weights = solved(ratings, 1.0)
    assert not weights[5].any()
    assert not weights[:, 5].any()
    model = ease.EASE(catalog_of(ratings), l2=1.0)
    scores = np.asarray(model.scores(model.tables(), {"user": jnp.arange(12)}))
    assert not scores[4].any()
    assert not scores[:, 5].any()
    np.testing.assert_allclose(scores[3], weights[ratings[3] > 0].sum(0), atol=1e-6)


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_one_item(density):
    model = ease.EASE(catalog_of(drawn(0, 3, 1, density)))
    scores = model.scores(model.tables(), {"user": jnp.arange(3)})
    np.testing.assert_array_equal(scores, np.zeros((3, 1)))


def test_memory_is_one_double_and_one_single_matrix():
    count = 1500
    ratings = drawn(0, 20, count, 0.05)
    catalog = catalog_of(ratings)
    tracemalloc.start()
    ease.EASE(catalog)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Beside them a block of rows, of this small matrix a third, once or twice.
    assert peak < (8 + 4 + 8) * count**2, peak / count**2


def test_what_it_refuses():
    catalog = catalog_of(drawn(0, 3, 5))
    large = base.Catalog(**vars(catalog) | {"n_items": 40_000})
    with pytest.raises(InputError, match=r"EASE of 40,000 items needs 17\.9 GiB"):
        ease.EASE(large)
    with pytest.raises(InputError, match="max_items=4: raise it"):
        ease.EASE(catalog, max_items=4)
    ease.EASE(catalog, max_items=5)
    for l2 in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="must be positive"):
            ease.EASE(catalog, l2=l2)
    twice = catalog_of(np.ones((3, 2)))  # two items that are the same
    with pytest.raises(InputError, match="l2=1e-20 is too small"):
        ease.EASE(twice, l2=1e-20)
