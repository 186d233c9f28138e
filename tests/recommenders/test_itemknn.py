"""ItemKNN's neighbours and scores against dense SciPy and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import distance
from sklearn.metrics.pairwise import cosine_similarity

from mmjax.recommenders import base, itemknn

USERS, ITEMS, K = 30, 17, 4


@pytest.fixture(scope="module")
def ratings():
    rng = np.random.default_rng(0)
    return rng.integers(1, 6, (USERS, ITEMS)) * (rng.random((USERS, ITEMS)) < 0.3).astype(float)


def catalog_of(ratings):
    user, item = np.nonzero(ratings)
    return base.Catalog(
        n_users=USERS,
        n_items=ITEMS,
        train_user=user.astype(np.int32),
        train_item=item.astype(np.int32),
        train_rating=ratings[user, item].astype(np.float32),
    )


def similarity(name, x, alpha, beta, shrink):
    """[history, candidate], from the formulas; columns of x are items."""
    if name == "cosine" and shrink == 0:
        return cosine_similarity(x.T)
    if name == "jaccard":
        return 1 - distance.cdist(x.T > 0, x.T > 0, "jaccard")
    binary = (x > 0).astype(float)
    if name == "tversky":
        both, size = binary.T @ binary, binary.sum(0)
        only = size[:, None] - both, size[None] - both
        return both / (alpha * only[0] + beta * only[1] + both + shrink)
    dots, square = x.T @ x, (x**2).sum(0)
    return {
        "dot": dots / (1 + shrink),
        "cosine": dots / (np.sqrt(np.outer(square, square)) + shrink),
        "asymmetric": dots / (np.outer(square**alpha, square ** (1 - alpha)) + shrink),
    }[name]


def keep_top(matrix, axis):
    order = np.argsort(-matrix, axis=axis, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(
        rank, order, np.arange(ITEMS)[:, None] if axis == 0 else np.arange(ITEMS)[None], axis
    )
    return np.where(rank < K, matrix, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", itemknn.SIMILARITIES)
@pytest.mark.parametrize("neighbours_of", ["candidate", "history"])
@pytest.mark.parametrize("implicit", [True, False])
def test_scores_equal_the_formula(ratings, name, neighbours_of, implicit, monkeypatch):
    monkeypatch.setattr(itemknn, "ENTRIES", 5 * ITEMS)  # several blocks
    alpha, beta, shrink = 0.3, 0.8, 0.0 if name == "jaccard" else 0.5
    x = (ratings > 0).astype(float) if implicit else ratings
    weights = np.nan_to_num(similarity(name, x, alpha, beta, shrink))
    for keep_self in (False, True):
        kept = weights.copy()
        if not keep_self:
            np.fill_diagonal(kept, 0)
        kept = keep_top(kept, axis=0 if neighbours_of == "candidate" else 1)
        model = itemknn.ItemKNN(
            catalog_of(ratings),
            neighbours=K,
            similarity=name,
            shrink=shrink,
            alpha=alpha,
            beta=beta,
            implicit=implicit,
            neighbours_of=neighbours_of,
            keep_self=keep_self,
        )
        scores = model.scores(model.tables(), {"user": jnp.arange(USERS)})
        np.testing.assert_allclose(scores, x @ kept, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_users_side_by_side_as_on_an_accelerator(ratings, monkeypatch):
    model = itemknn.ItemKNN(catalog_of(ratings), neighbours=K, neighbours_of="history")
    users = {"user": jnp.arange(USERS)}
    one_by_one = model.scores(model.tables(), users)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *a, cpu, default: default(*a))
    np.testing.assert_allclose(model.scores(model.tables(), users), one_by_one, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 3)])
@pytest.mark.parametrize("density", [0, 1])
def test_one_item_one_user_and_no_history(shape, density):
    """More neighbours than items; where no item has a neighbour, all scores are zero."""
    user, item = np.nonzero(np.full(shape, density))
    ones = np.ones(len(user), np.float32)
    catalog = base.Catalog(*shape, user.astype(np.int32), item.astype(np.int32), ones)
    model = itemknn.ItemKNN(catalog, neighbours=9, similarity="dot")
    scores = model.scores(model.tables(), {"user": jnp.arange(shape[0])})
    # Each item has its buyers in common with each of the other items of the history.
    np.testing.assert_allclose(scores, np.full(shape, density * shape[0] * (shape[1] - 1)))
