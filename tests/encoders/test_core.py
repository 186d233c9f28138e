"""The pipeline between host and device: order, errors, no thread left behind."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.encoders.core import Batch, Clock, pad_to, prefetch, stream


def batches(count, size=4):
    for i in range(count):
        rows = np.arange(i * size, i * size + size - (i == count - 1))
        yield Batch(rows, (pad_to(rows.astype(np.float32)[:, None], size),))


def test_stream_keeps_rows_and_values_together():
    out = np.full((11, 1), -1.0)
    for rows, values in stream(batches(3), lambda p, x: p * x, jnp.float32(2)):
        out[rows] = values
    np.testing.assert_array_equal(out[:, 0], 2.0 * np.arange(11))


def test_failures_are_told_and_an_empty_batch_is_not_run():
    told, ran = [], []

    def made():
        yield Batch(np.array([], int), (np.zeros((2, 1)),), {0: "gone", 1: "broken"})
        yield Batch(np.array([2]), (np.zeros((2, 1)),))

    def encode(_, x):
        ran.append(x)
        return x

    seen = stream(made(), encode, (), None, lambda batch: told.extend(batch.failed.items()))
    rows = [rows.tolist() for rows, _ in seen]
    assert rows == [[2]]
    assert len(ran) == 1
    assert told == [(0, "gone"), (1, "broken")]


def test_several_outputs_and_the_time_that_the_device_waited():
    def slowly():
        for batch in batches(3):
            time.sleep(0.05)
            yield batch

    clock = Clock()
    encode = jax.jit(lambda p, x: (p * x, x[:, 0]))
    for rows, (twice, same) in stream(slowly(), encode, jnp.float32(2), clock=clock):
        np.testing.assert_array_equal(twice[:, 0], 2.0 * rows)
        np.testing.assert_array_equal(same, rows)
    assert clock.waited > 0.05


def test_ahead_raises_in_place_and_leaves_no_thread():
    def source():
        yield 1
        raise KeyError("late")

    before = threading.active_count()
    elements = prefetch(source())
    assert next(elements) == 1
    with pytest.raises(KeyError, match="late"):
        next(elements)

    endless = prefetch(iter(int, 1))
    assert next(endless) == 0
    endless.close()
    assert threading.active_count() == before
