"""Features that are not read yet are, once they are, what they would have been at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mmjax import store
from mmjax.ops.normalize import unit
from mmjax.parallel import mesh as meshes
from mmjax.parallel import table_sharding
from mmjax.parallel.lazy_features import array, by_rows


def unit_and_beside(*rows):
    return jnp.concatenate([unit(x) for x in rows], axis=1)


@pytest.fixture
def features(tmp_path):
    rng = np.random.default_rng(0)
    made = [rng.normal(size=(13, width)).astype(np.float32) for width in (3, 5)]
    for n, rows in enumerate(made):
        store.write_array(tmp_path / str(n), rows, item_ids=[str(i) for i in range(13)])
    return made, [store.open_store(tmp_path / str(n)).unread(np.float32) for n in range(2)]


@pytest.mark.slow
def test_unread_features_are_those_that_were_read(features):
    read, unread = features
    expected = by_rows(unit_and_beside, *read)
    made = by_rows(unit_and_beside, *unread)
    assert (made.shape, made.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(np.asarray(made), expected, rtol=1e-6)
    np.testing.assert_allclose(array(made), expected, rtol=1e-6)

    grid = meshes.make("data=2,model=4")
    laid = meshes.put(
        table_sharding.pad_axis(made, 8), NamedSharding(grid, PartitionSpec(table_sharding.AXES))
    )
    assert {shard.data.shape for shard in laid.addressable_shards} == {(2, 8)}
    np.testing.assert_allclose(laid[:13], expected, rtol=1e-6)
    assert not np.asarray(laid)[13:].any()


def test_a_program_has_them_as_arguments(features):
    read, unread = features

    def program(*rows):
        known = [x.within(given) for x, given in zip(unread, rows, strict=True)]
        return by_rows(unit_and_beside, *known).array()

    np.testing.assert_allclose(jax.jit(program)(*read), by_rows(unit_and_beside, *read), rtol=1e-6)
    assert not jax.make_jaxpr(program)(*read).consts


def test_whether_there_is_anything_is_known_without_reading_all(features, tmp_path):
    _, unread = features
    none = np.zeros((13, 2), np.float32)
    store.write_array(tmp_path / "none", none, item_ids=[str(i) for i in range(13)])
    empty = store.open_store(tmp_path / "none").unread(np.float32)
    assert not empty.some()
    assert by_rows(unit_and_beside, empty, unread[0]).some()
