"""Distinct integers: those of NumPy."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mmjax.core.unique import distinct


@given(arrays(np.int64, st.integers(0, 40), elements=st.integers(-9, 2**62)))
def test_what_numpy_says(values):
    kept = values.copy()
    np.testing.assert_array_equal(distinct(values), np.unique(values))
    np.testing.assert_array_equal(distinct(np.unique(values)), np.unique(values))
    np.testing.assert_array_equal(values, kept)
