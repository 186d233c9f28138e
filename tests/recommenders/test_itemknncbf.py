"""ItemKNNCBF against MMRec's, dense: method.md 7.11, f = [v|t], f f^T / (|f| |f| + 10), row top-10.

`mmrec` transcribes its `build_item_sim_matrix` and score: every row of the similarities keeps its
largest, of whatever sign, the item itself among them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recommenders.test_userknn import catalog_of, drawn

from mmjax.core.errors import InputError
from mmjax.recommenders import base, itemknn, itemknncbf

USERS, ITEMS = 20, 26
WIDTHS = {"image": 5, "text": 3, "audio": 2}


def features_of(seed, names=tuple(WIDTHS), items=ITEMS, absent=()):
    rng = np.random.default_rng(seed)
    rows = {name: rng.normal(size=(items, WIDTHS[name])) * 3 for name in names}
    for x in rows.values():
        x[list(absent)] = 0
    return rows


def mmrec(features, ratings, top_k, shrink):
    f = np.hstack(list(features.values()))
    norm = np.linalg.norm(f, axis=1)
    below = np.outer(norm, norm) + shrink
    sim = np.divide(f @ f.T, below, out=np.zeros_like(below), where=below > 0)
    kept = np.zeros_like(sim)
    for j, row in enumerate(sim):
        best = np.argsort(-row, kind="stable")[:top_k]
        kept[j, best] = row[best]
    return (ratings > 0) @ kept


def built(ratings, features, **options):
    catalog = base.Catalog(**vars(catalog_of(ratings)) | {"features": features})
    model = itemknncbf.ItemKNNCBF(catalog, **options)
    return model.scores(model.tables(), {"user": jnp.arange(len(ratings))})


@pytest.mark.slow
@pytest.mark.parametrize("names", [("image", "text"), ("text",), ("audio", "image", "text")])
@pytest.mark.parametrize("shrink", [0.0, 10.0])
def test_scores_equal_mmrecs(names, shrink, monkeypatch):
    monkeypatch.setattr(itemknn, "ENTRIES", 7 * ITEMS)  # blocks of seven rows
    ratings = drawn(0, USERS, ITEMS)
    features = features_of(1, names, absent=(3, 25))
    want = mmrec(features, ratings, 10, shrink)
    with jax.enable_x64(True):
        got = built(ratings, features, shrink=shrink)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-9 * np.abs(want).max())
    got = built(ratings, features, shrink=shrink)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
    assert not np.asarray(got)[:, [3, 25]].any()  # similar to none


@given(
    st.integers(0, 10_000),
    st.integers(1, 12),
    st.integers(1, 15),
    st.sampled_from([0.0, 10.0]),
    st.integers(1, 30),
)
@settings(deadline=None, max_examples=60)
def test_neighbours_of_any_small_catalogue(seed, items, top_k, shrink, entries):
    """One item, more neighbours than items, features of few values: ties go to the lower item."""
    rng = np.random.default_rng(seed)
    features = rng.integers(-1, 2, (items, 2)).astype(np.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(itemknn, "ENTRIES", entries)
        got = itemknn.similar_items(
            features,
            neighbours=top_k,
            similarity="cosine",
            constants=(0.0, 0.0, shrink),
            neighbours_of="history",
            keep_self=True,
        ).toarray()
    want = mmrec({"few": features}, np.eye(items), top_k, shrink)
    for row, mine, theirs in zip(range(items), got, want, strict=True):
        # Their norms are rounded on the way: of what ties up to that, another may be kept.
        np.testing.assert_allclose(np.sort(mine), np.sort(theirs), atol=1e-12, err_msg=str(row))
    if top_k >= items:
        np.testing.assert_allclose(got, want, atol=1e-12)
    assert (np.count_nonzero(got, axis=1) <= min(top_k, items)).all()


def test_an_item_nobody_has_is_scored_and_a_user_without_history_scores_nothing():
    ratings = drawn(0, USERS, ITEMS)
    ratings[:, 4] = 0
    ratings[2] = 0
    ratings[5] = 1  # has every item
    features = {"text": np.abs(features_of(1)["text"])}
    scores = np.asarray(built(ratings, features, top_k=ITEMS))
    assert (scores[[0, 5], 4] > 0).all()
    assert not scores[2].any()
    np.testing.assert_allclose(scores, mmrec(features, ratings, ITEMS, 10.0), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_bfloat16_features_are_compared_in_float32():
    ratings, features = drawn(0, USERS, ITEMS), features_of(1)
    half = {name: jnp.asarray(x, jnp.bfloat16) for name, x in features.items()}
    rounded = {name: np.asarray(x, np.float64) for name, x in half.items()}
    want = mmrec(rounded, ratings, 10, 10.0)
    np.testing.assert_allclose(built(ratings, half), want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_bad_input():
    ratings = drawn(0, USERS, ITEMS)
    with pytest.raises(InputError, match="top_k=0 must be at least 1"):
        built(ratings, features_of(1), top_k=0)
    with pytest.raises(InputError, match="needs item features"):
        built(ratings, {})
