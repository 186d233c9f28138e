"""Bisection in ranges against NumPy's searchsorted."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.ops import binary_search

pytestmark = pytest.mark.slow


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_first_in_each_range(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 9, 6)  # empty ranges too
    ends = np.cumsum(lengths)
    starts = ends - lengths
    values = [np.sort(rng.integers(0, 12, n)) for n in lengths]
    flat = jnp.asarray(np.append(np.concatenate(values), 0).astype(np.int32))
    wanted = rng.integers(-1, 13, 6)
    found = binary_search.first(
        jnp.asarray(starts),
        jnp.asarray(ends),
        lambda at: flat.at[at].get(mode="clip") < jnp.asarray(wanted),
        int(lengths.max()),
    )
    want = [s + np.searchsorted(v, w) for s, v, w in zip(starts, values, wanted, strict=True)]
    assert found.tolist() == want
