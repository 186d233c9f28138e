"""What recommenders draw: uniform numbers of sixteen bits, and dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.ops.draws import dropout, uniform


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(100_001,), (1000, 65), (3, 1)])
def test_uniform_numbers_are_uniform_and_unlike_their_neighbours(shape):
    drawn = np.asarray(uniform(jax.random.key(0), shape, jnp.float32))
    assert drawn.shape == shape
    assert drawn.min() >= 0
    assert drawn.max() < 1
    flat = drawn.ravel()
    if flat.size > 10:
        counts = np.bincount((flat * 16).astype(int), minlength=16)
        expected = flat.size / 16
        assert (np.square(counts - expected) / expected).sum() < 50  # chi2(15), p = 1e-5
        assert abs(np.corrcoef(flat[:-1], flat[1:])[0, 1]) < 5 / flat.size**0.5
    other = uniform(jax.random.key(1), shape, jnp.float32)
    assert not np.array_equal(drawn, other)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_dropout_keeps_its_share_and_the_mean(rate):
    x = jnp.ones((400, 501))
    dropped = np.asarray(dropout(jax.random.key(3), x, rate))
    spread = 5 * (rate * (1 - rate) / x.size) ** 0.5
    assert abs((dropped == 0).mean() - rate) <= spread + 2**-16
    np.testing.assert_allclose(dropped[dropped > 0], 1 / (1 - rate), rtol=1e-6)
