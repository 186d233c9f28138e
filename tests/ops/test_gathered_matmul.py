"""Projected rows of a batch: in blocks and at once they equal the product of all rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.ops import gathered_matmul

pytestmark = pytest.mark.slow


def plain(features, weight, items):
    return (features.astype(weight.dtype) @ weight.T)[items]


@functools.partial(jax.jit, static_argnums=0)
def gradients(function, features, weight, items, cotangent):
    out, back = jax.vjp(lambda f, w: function(f, w, items), features, weight)
    return out, *back(cotangent)


@settings(max_examples=25, deadline=None)
@given(
    count=st.sampled_from([1, 40, 600]),
    batch=st.sampled_from([1, 300, 700]),
    popular=st.floats(0, 4),
    seed=st.integers(0, 9),
)
def test_in_blocks_it_is_the_plain_product_and_so_are_its_gradients(count, batch, popular, seed):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    features, weight, cotangent = draw(count, 12), draw(5, 12), draw(batch, 5)
    items = jnp.asarray(count * rng.random(batch) ** (1 + popular), jnp.int32)
    ours, theirs = (
        gradients(function, features, weight, items, cotangent)
        for function in (gathered_matmul.project, plain)
    )
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_an_accelerators_way_equals_that_of_a_cpu(dtype):
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.normal(size=(300, 40)), dtype)
    weight = jnp.asarray(rng.normal(size=(8, 40)), jnp.float32)
    items = jnp.asarray(rng.integers(0, 300, 900))
    cotangent = jnp.asarray(rng.normal(size=(900, 8)), jnp.float32)
    wide = features.astype(jnp.float32)
    pairs = [
        (
            gathered_matmul._in_blocks(features, weight, items),
            gathered_matmul._at_once(features, weight, items),
        ),
        (
            gathered_matmul._of_weight_in_blocks(features, items, cotangent),
            gathered_matmul._of_weight_at_once(features, items, cotangent),
        ),
        (
            gathered_matmul._of_features_in_blocks(wide, weight, items, cotangent),
            gathered_matmul._of_features_at_once(wide, weight, items, cotangent),
        ),
    ]
    for mine, theirs in pairs:
        assert mine.dtype == theirs.dtype == jnp.float32
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


def test_trials_side_by_side():
    """Each has its own batch, features stay shared."""
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.normal(size=(50, 6)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(3, 4, 6)), jnp.float32)
    items = jnp.asarray(rng.integers(0, 50, (3, 20)))
    together = jax.jit(jax.vmap(gathered_matmul.project, (None, 0, 0)))(features, weights, items)
    for mine, weight, own in zip(together, weights, items, strict=True):
        np.testing.assert_allclose(mine, plain(features, weight, own), rtol=1e-5, atol=1e-5)
