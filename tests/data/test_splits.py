"""k-core and splits: the properties that define them, on random interactions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.data import splits

pairs = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=60)
shares = st.sampled_from([0.0, 0.1, 0.2, 0.25, 0.3, 0.5, 0.9])


def columns(rows):
    array = np.array(rows, np.int32).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def naive_core(rows, k):
    """Removes one too rare user or item at a time, until there is none."""
    left = list(rows)
    while True:
        for side in (0, 1):
            keys = [row[side] for row in left]
            rare = {key for key in keys if keys.count(key) < k}
            if rare:
                left = [row for row in left if row[side] not in rare]
                break
        else:
            return left


def elliot_counts(n, test, valid):
    stay = math.floor(n * (1 - test))
    train = math.floor(stay * (1 - valid))
    return train, stay - train, n - stay


@settings(deadline=None)
@given(pairs, st.integers(0, 5))
def test_k_core_is_the_largest_fixpoint(rows, k):
    user, item = columns(rows)
    keep = splits.k_core(user, item, k)
    for side in (user[keep], item[keep]):
        assert all(np.unique(side, return_counts=True)[1] >= k)
    assert [row for row, stays in zip(rows, keep, strict=True) if stays] == naive_core(rows, k)


@settings(deadline=None)
@given(pairs, shares, shares, st.integers(0, 3))
def test_shares_per_user_are_elliots(rows, test, valid, seed):
    user, item = columns(rows)
    for labels in (
        splits.random_per_user(user, seed, test, valid),
        splits.temporal_per_user(user, item, test, valid),
    ):
        assert labels.dtype == np.int8
        for key in np.unique(user):
            mine = labels[user == key]
            counts = tuple(np.bincount(mine, minlength=3))
            assert counts == elliot_counts(len(mine), test, valid)


def test_counts_that_floating_point_decides():
    """10 * (1 - 0.9) is just below 1, and Elliot's floor makes it 0."""
    labels = splits.random_per_user(np.zeros(10, np.int32), 0, 0.9, 0.0)
    assert (labels == splits.TEST).sum() == 10
    labels = splits.random_per_user(np.zeros(5, np.int32), 0, 0.2, 0.1)
    assert np.bincount(labels).tolist() == [3, 1, 1]


def test_random_split_is_a_function_of_the_seed():
    user = np.repeat(np.arange(50, dtype=np.int32), 20)
    first, again, other = (splits.random_per_user(user, seed, 0.2, 0.1) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.2


def test_random_split_favours_no_place():
    """Each of a user's ten rows is as often in the test as any other."""
    user = np.repeat(np.arange(4000, dtype=np.int32), 10)
    tested = splits.random_per_user(user, 0, 0.2, 0.1).reshape(-1, 10) == splits.TEST
    np.testing.assert_allclose(tested.mean(axis=0), 0.2, atol=0.03)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=40))
def test_temporal_per_user_never_looks_back(rows):
    user, time = columns(rows)
    labels = splits.temporal_per_user(user, time, 0.3, 0.3)
    for key in np.unique(user):
        mine, when = labels[user == key], time[user == key]
        for early, late in ((0, 1), (1, 2), (0, 2)):
            if (mine == early).any() and (mine == late).any():
                assert when[mine == early].max() <= when[mine == late].min()


def test_temporal_per_user_breaks_ties_by_row():
    labels = splits.temporal_per_user(np.zeros(5, np.int32), np.zeros(5, np.int64), 0.2, 0.25)
    assert labels.tolist() == [0, 0, 0, 1, 2]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=40))
def test_leave_last_out_leaves_everybody_a_history(rows):
    user, time = columns(rows)
    labels = splits.leave_last_out(user, time)
    for key in np.unique(user):
        mine, when = labels[user == key], time[user == key]
        n = len(mine)
        expected = (n - 2, 1, 1) if n > 2 else (1, 0, n - 1)
        assert tuple(np.bincount(mine, minlength=3)) == expected
        if n > 1:
            assert when[mine == 2][0] == when.max()


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), max_size=60), shares, shares)
def test_temporal_global_cuts_all_users_at_the_same_moments(times, test, valid):
    time = np.array(times, np.int64)
    labels = splits.temporal_global(time, test, valid)
    order = np.argsort(time, kind="stable")
    assert (np.diff(labels[order]) >= 0).all()
    for moment in np.unique(time):
        assert len(set(labels[time == moment])) == 1
    train, _, held = elliot_counts(len(time), test, valid)
    assert (labels == 0).sum() <= train
    assert (labels == 2).sum() >= held


@pytest.mark.parametrize("split", [splits.leave_last_out])
def test_no_interactions_no_labels(split):
    none = np.zeros(0, np.int64)
    assert split(none, none).shape == (0,)
    assert splits.random_per_user(none, 0, 0.2, 0.1).shape == (0,)
    assert splits.temporal_global(none, 0.2, 0.1).shape == (0,)
