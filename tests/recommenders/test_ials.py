"""iALS against the solve of Rendle et al., RecSys 2022, row by row, sweep by sweep.

`rows_of` is what `Project` and `RegularizationValue` of their released `ials_main.cc` compute, and
`sweep` their `Train`: every user, then every item. `objective` is what both minimise.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from recommenders.test_userknn import catalog_of, drawn

from mmjax.core.errors import InputError
from mmjax.parallel import mesh as meshes
from mmjax.recommenders import ials, itemknn
from mmjax.training import assembly, ensemble

USERS, ITEMS, DIM = 40, 30, 6
WEIGHTS = dict(unobserved=0.3, l2=0.05, exponent=0.7)


def rows_of(histories, other, unobserved, l2, exponent):
    """The best row for each history, a list of row numbers of `other`."""
    count, dim = other.shape
    out = np.zeros((len(histories), dim))
    for n, history in enumerate(histories):
        if not len(history):
            continue
        left = unobserved * other.T @ other
        left += l2 * (len(history) + unobserved * count) ** exponent * np.eye(dim)
        right = np.zeros(dim)
        for i in history:
            left += np.outer(other[i], other[i])
            right += other[i]
        out[n] = np.linalg.solve(left, right)
    return out


def sweep(ratings, item, **weights):
    user = rows_of([np.flatnonzero(row) for row in ratings], item, **weights)
    return user, rows_of([np.flatnonzero(row) for row in ratings.T], user, **weights)


def objective(ratings, user, item, unobserved, l2, exponent):
    seen = ratings > 0
    score = user @ item.T
    of_users = l2 * (seen.sum(1) + unobserved * seen.shape[1]) ** exponent
    of_items = l2 * (seen.sum(0) + unobserved * seen.shape[0]) ** exponent
    fit = (seen * (score - 1) ** 2).sum() + unobserved * (score**2).sum()
    return fit + (of_users[:, None] * user**2).sum() + (of_items[:, None] * item**2).sum()


def start_of(stddev=0.1):
    key = nnx.Rngs(params=0).params()
    return np.asarray(jax.random.normal(key, (ITEMS, DIM))) * stddev / np.sqrt(DIM)


def built(ratings, **options):
    return ials.IALS(catalog_of(ratings), dim=DIM, **options, rngs=nnx.Rngs(params=0))


@pytest.fixture(scope="module")
def ratings():
    """Histories of several pieces: all but an item nobody has, all but a user who has nothing."""
    rows = drawn(0, USERS, ITEMS)
    rows[4], rows[:, 9] = 1, 1
    rows[3], rows[:, 7] = 0, 0
    return rows


ALL, FIVE, ONE = 1 << 22, 5 * DIM**2, 1  # rows in a block; of their pieces as many at a time


@pytest.mark.slow
@pytest.mark.parametrize(("entries", "iterations"), [(ALL, 1), (ALL, 5), (FIVE, 2), (ONE, 2)])
def test_every_sweep_equals_the_formula(ratings, entries, iterations, monkeypatch):
    monkeypatch.setattr(ials, "ENTRIES", entries)
    with jax.enable_x64(True):
        model = built(ratings, iterations=iterations, **WEIGHTS)
        want = (None, start_of())
        for _ in range(iterations):
            want = sweep(ratings, want[1], **WEIGHTS)
        for mine, theirs in zip(model.tables(), want, strict=True):
            assert mine.dtype == np.float64
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-9 * np.abs(theirs).max())
        scores = model.scores(model.tables(), {"user": jnp.arange(USERS)})
        np.testing.assert_allclose(scores, want[0] @ want[1].T, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_a_sweep_in_float32(ratings):
    model = built(ratings, iterations=1, **WEIGHTS)
    want = sweep(ratings, start_of(), **WEIGHTS)
    for mine, theirs in zip(model.tables(), want, strict=True):
        assert mine.dtype == np.float32
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.slow
def test_sweeps_descend_to_a_point_without_slope(ratings):
    with jax.enable_x64(True):
        values, tables = [], []
        for iterations in (1, 2, 400):
            tables.append(built(ratings, iterations=iterations, **WEIGHTS).tables())
            values.append(objective(ratings, *map(np.asarray, tables[-1]), **WEIGHTS))
        assert (np.diff(values) < 0).all(), values
        user, item = map(np.asarray, tables[-1])
        step = np.random.default_rng(0).normal(size=(USERS + ITEMS, DIM)) * 1e-4
        for sign in (1, -1):
            moved = user + sign * step[:USERS], item + sign * step[USERS:]
            assert objective(ratings, *moved, **WEIGHTS) > values[-1]


@given(
    st.integers(0, 10_000),
    st.integers(1, 8),
    st.integers(1, 40),
    st.sampled_from([0.0, 0.2, 1.0]),
)
@settings(deadline=None, max_examples=40)
def test_pieces_hold_each_history_in_order(seed, rows, columns, density):
    ratings = drawn(seed, rows, columns, density)
    pieces = ials.cut(itemknn.profile_of(catalog_of(ratings), True))
    for n, row in enumerate(ratings):
        mine = pieces.columns[pieces.starts[n] : pieces.starts[n + 1]]
        assert (pieces.rows[pieces.starts[n] : pieces.starts[n + 1]] == n).all()
        history = np.flatnonzero(row)
        assert pieces.lengths[n] == len(history)
        np.testing.assert_array_equal(mine.ravel()[: len(history)], history)
        assert (mine.ravel()[len(history) :] == columns).all()
        assert mine.size - len(history) < ials.PIECE
    assert pieces.starts[-1] == len(pieces.rows) == len(pieces.columns)


@pytest.mark.slow
def test_trials_differ_by_their_seed_alone(ratings):
    options = dict(dim=DIM, iterations=2, **WEIGHTS)
    trials = assembly.build(
        ials.IALS,
        catalog_of(ratings),
        options,
        seeds=(5, 6, 5),
        hypers={"lr": (1e-3,) * 3},
        settings=ensemble.Settings(),
        mesh=meshes.make("data=1"),
    )
    state = trials.init()
    assert not trials.trainable
    assert not jax.tree.leaves(state["params"])
    assert state["drawn"]["user"].shape == (3, USERS, DIM)
    item = np.asarray(state["drawn"]["item"])
    np.testing.assert_array_equal(item[0], item[2])
    assert np.abs(item[0] - item[1]).max() > 1e-3
    key = jax.random.fold_in(jax.random.key(6), 0)
    alone = ials.IALS(catalog_of(ratings), **options, rngs=nnx.Rngs(params=key))
    np.testing.assert_allclose(alone.tables()[1], item[1], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_who_has_nothing_is_zero_also_where_nothing_else_is_regularised(ratings):
    model = built(ratings, iterations=2, unobserved=0.0, l2=0.1)
    user, item = map(np.asarray, model.tables())
    assert np.isfinite(user).all()
    assert np.isfinite(item).all()
    assert not user[3].any()
    assert not item[7].any()
    assert user[4].any()


@pytest.mark.slow
@pytest.mark.parametrize("density", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (1, 5)])
def test_the_smallest_catalogues(density, shape):
    tables = built(drawn(0, *shape, density), iterations=2).tables()
    for table, count in zip(tables, shape, strict=True):
        assert table.shape == (count, DIM)
        assert np.isfinite(table).all()
        assert bool(np.asarray(table).any()) == (density > 0)


def test_bad_options(ratings):
    with pytest.raises(InputError, match="iterations=0 must be at least 1"):
        built(ratings, iterations=0)
    with pytest.raises(InputError, match=r"l2=0\.0 must be positive"):
        built(ratings, l2=0.0)
    with pytest.raises(InputError, match=r"unobserved=-1\.0 must not be negative"):
        built(ratings, unobserved=-1.0)
