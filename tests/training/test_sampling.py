"""Batches: a true permutation, exact negatives, and nothing but seed, epoch and step in them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.core.errors import InputError
from mmjax.training import sampling


def interactions(seed, n_users, n_items, n):
    rng = np.random.default_rng(seed)
    pairs = np.unique(rng.integers(0, n_users * n_items, n))
    return (pairs // n_items).astype(np.int32), (pairs % n_items).astype(np.int32)


@pytest.mark.slow
@given(st.integers(1, 3000), st.integers(0, 2**31 - 1))
@settings(deadline=None, max_examples=40)
def test_shuffle_is_a_permutation(n, seed):
    order = sampling.shuffle(jax.random.key(seed), jnp.arange(n, dtype=jnp.uint32), n)
    assert sorted(order.tolist()) == list(range(n))


def on_device(user, item, n_users):
    return jax.device_put(sampling.positives(user, item, n_users))


@pytest.mark.slow
def test_shuffle_mixes():
    """Where a value lands is uniform, and unrelated to where its neighbour lands."""
    n, index = 64, jnp.arange(64, dtype=jnp.uint32)
    keys = jax.random.split(jax.random.key(0), 4000)
    orders = np.asarray(jax.vmap(lambda key: sampling.shuffle(key, index, n))(keys))
    for column in (0, 17, 63):
        counts = np.bincount(orders[:, column], minlength=n)
        chi2 = ((counts - 4000 / n) ** 2 / (4000 / n)).sum()
        assert chi2 < 63 + 5 * np.sqrt(2 * 63)
    gap = (orders[:, 1] - orders[:, 0]) % n
    counts = np.bincount(gap, minlength=n)[1:]
    assert ((counts - 4000 / 63) ** 2 / (4000 / 63)).sum() < 62 + 5 * np.sqrt(2 * 62)


@pytest.mark.slow
@given(st.integers(0, 1000), st.integers(2, 30), st.integers(3, 20))
@settings(deadline=None, max_examples=30)
def test_negatives_are_train_items_that_the_user_lacks(seed, n_users, n_items):
    user, item = interactions(seed, n_users, n_items, n_users * 2)
    pool = np.unique(item)
    if np.bincount(user).max() == len(pool):
        with pytest.raises(InputError, match="no negative"):
            sampling.positives(user, item, n_users)
        return
    data = on_device(user, item, n_users)
    who = jnp.asarray(np.repeat(user, 5))
    drawn = np.asarray(sampling.negatives(jax.random.key(seed), data, who))
    assert np.isin(drawn, pool).all()
    assert not np.isin(np.asarray(who) * n_items + drawn, user * n_items + item).any()


@pytest.mark.slow
def test_negatives_are_uniform_over_what_is_left():
    user = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1], np.int32)
    item = np.array([2, 5, 6, 0, 1, 3, 7, 9, 4], np.int32)  # item 8 is not in train
    data = on_device(user, item, 3)
    drawn = sampling.negatives(jax.random.key(1), data, jnp.zeros(12000, jnp.int32))
    counts = np.bincount(drawn, minlength=10)
    assert set(np.flatnonzero(counts)) == {0, 1, 3, 4, 7, 9}
    assert ((counts[counts > 0] - 2000) ** 2 / 2000).sum() < 30
    everything = sampling.negatives(jax.random.key(1), data, jnp.full(6000, 2))  # no history
    assert set(np.unique(everything)) == {0, 1, 2, 3, 4, 5, 6, 7, 9}


@pytest.mark.slow
@pytest.mark.parametrize("sampler", sampling.SAMPLERS)
def test_an_epoch_of_batches(sampler):
    user, item = interactions(3, 50, 40, 400)
    data = on_device(user, item, 50)
    size = 64
    steps = sampling.steps(data, size)
    assert steps == -(-len(user) // size)
    rows = []
    for t in range(steps):
        batch = sampling.batch(jax.random.key(7), jnp.uint32(t), data, size, sampler)
        known = np.isin(np.asarray(batch["user"]) * 40 + np.asarray(batch["pos"]), user * 40 + item)
        assert known.all()
        rows.append(np.asarray(batch["user"]) * 40 + np.asarray(batch["pos"]))
    if sampler == "interactions":  # each once, and the last batch filled up from the first
        flat = np.concatenate(rows)
        assert sorted(flat[: len(user)]) == sorted(user * 40 + item)
        assert (flat[len(user) :] == flat[: len(flat) - len(user)]).all()


@pytest.mark.slow
def test_a_batch_depends_on_key_and_step_alone():
    data = on_device(*interactions(3, 50, 40, 400), 50)
    draw = jax.jit(lambda key, t: sampling.batch(key, t, data, 32, "interactions"))
    one, two = (draw(jax.random.key(7), jnp.uint32(4)) for _ in range(2))
    other = draw(jax.random.key(8), jnp.uint32(4))
    assert all((one[k] == two[k]).all() for k in one)
    assert not (one["pos"] == other["pos"]).all()


def test_empty_train_is_named():
    with pytest.raises(InputError, match="train split is empty"):
        sampling.positives(np.array([], np.int32), np.array([], np.int32), 3)
