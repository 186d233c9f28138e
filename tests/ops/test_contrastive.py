"""The blocked cross-entropy equals the plain one, in value and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.ops import contrastive

pytestmark = pytest.mark.slow


def plain(a, b, own, weights):
    logits = a @ b.T
    apart = jax.nn.logsumexp(logits, axis=1) - jnp.take_along_axis(logits, own[:, None], 1)[:, 0]
    return (weights * apart).sum()


def case(rows, others, scale, seed=0):
    rng = np.random.default_rng(seed)
    a, b = scale * rng.normal(size=(rows, 6)), rng.normal(size=(others, 6))
    weights = rng.random(rows) * (rng.random(rows) < 0.7)
    return (*map(jnp.asarray, (a, b, rng.integers(0, others, rows), weights)),)


def both(function, given):
    return jax.value_and_grad(lambda a, b: 3 * function(a, b, *given[2:]), (0, 1))(*given[:2])


@pytest.mark.parametrize("logits", [1, 300, 1 << 20])  # one block or several, filled up or not
@pytest.mark.parametrize(("rows", "others"), [(1, 1), (7, 7), (50, 33), (33, 80)])
def test_value_and_gradients(rows, others, logits, monkeypatch):
    monkeypatch.setattr(contrastive, "CPU_LOGITS", logits)
    with jax.enable_x64(True):
        for scale in (0.1, 5.0, 200.0):  # the last overflows where nothing is taken off
            given = case(rows, others, scale)
            jax.tree.map(
                functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9),
                both(contrastive.cross_entropy, given),
                both(plain, given),
            )


def test_an_accelerators_blocks_give_the_same(monkeypatch):
    given = case(64, 40, 2.0)
    a, b, _, weights = (jnp.asarray(x, jnp.float32) for x in given)
    small, large = (contrastive._in_blocks(a, b, weights, n) for n in (320, 1 << 24))
    for mine, other in zip(small, large, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)


def test_trials_side_by_side():
    """As accelerators run them."""
    a, b, own, weights = case(20, 20, 1.0)

    def shared(a, b):
        return both(contrastive.cross_entropy, (a, b, own, weights))

    together = jax.jit(jax.vmap(shared, (0, 0)))(jnp.stack([a, -a]), jnp.stack([b, b + 1]))
    for n, pair in enumerate(((a, b), (-a, b + 1))):
        alone = shared(*pair)
        for mine, other in zip(*map(jax.tree.leaves, (together, alone)), strict=True):
            np.testing.assert_allclose(mine[n], other, rtol=1e-5, atol=1e-6)
