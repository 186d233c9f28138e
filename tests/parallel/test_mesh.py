"""The mesh from one string, and the warning about a backend that is far too slow."""

import warnings
from types import SimpleNamespace

import jax
import jaxlib
import numpy as np
import pytest

from mmjax.core.errors import InputError
from mmjax.parallel import mesh


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        ("data=-1", (1, 8, 1)),
        ("", (1, 1, 1)),
        ("data=3", (1, 3, 1)),
        ("data=4,model=2", (1, 4, 2)),
        ("model=2, data=-1", (1, 4, 2)),
        ("trial=2,data=2,model=-1", (2, 2, 2)),
        ("trial=8", (8, 1, 1)),
    ],
)
def test_sizes(spec, shape):
    made = mesh.make(spec)
    assert made.axis_names == ("trial", "data", "model")
    assert made.devices.shape == shape
    assert set(made.axis_types) == {jax.sharding.AxisType.Auto}
    assert mesh.is_cpu(made)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("data", "'data' is not AXIS=SIZE"),
        ("dta=2", "'dta=2' is not AXIS=SIZE with an axis of trial, data, model"),
        ("data=0", "'data=0' is not AXIS=SIZE"),
        ("data=-2", "'data=-2' is not AXIS=SIZE"),
        ("data=two", "'data=two' is not AXIS=SIZE"),
        ("data=2,data=4", "names data twice"),
        ("data=9", "'data=9' does not fit 8 cpu devices"),
        ("data=4,model=4", "does not fit 8 cpu devices"),
        ("data=-1,model=-1", "more than one size is -1"),
        ("data=-1,model=3", "does not fit 8 cpu devices"),
    ],
)
def test_what_is_no_mesh(spec, message):
    with pytest.raises(InputError, match=message):
        mesh.make(spec)


def test_rows_are_split_and_tables_whole():
    made = mesh.make("data=4,model=2")
    array = np.arange(24).reshape(8, 3)
    split = jax.device_put(array, mesh.rows(made))
    assert {shard.data.shape for shard in split.addressable_shards} == {(2, 3)}
    whole = jax.device_put(array, mesh.replicated(made))
    assert {shard.data.shape for shard in whole.addressable_shards} == {(8, 3)}


@pytest.mark.parametrize(
    ("version", "slow"),
    [
        ("0.9.2", False),
        ("0.10.1", False),
        ("0.10.2", True),
        ("0.11.0", True),
        ("0.11.0.dev20260801", True),
        ("0.11.1", False),
        ("0.12.0.1", False),
        ("1.0.0", False),
    ],
)
def test_versions_whose_scatter_is_slow(version, slow):
    for platform in ("gpu", "cuda"):
        said = mesh.slow_scatter(platform, version)
        assert bool(said) == slow
        if slow:
            assert version in said
            assert "jaxlib >= 0.11.1" in said
    for platform in ("cpu", "tpu", "rocm"):
        assert mesh.slow_scatter(platform, version) is None


def test_start_up_on_cuda_warns(monkeypatch):
    """The eight CPU devices of the tests say that they are a GPU's; nothing else is pretended."""
    devices = jax.devices()
    as_gpu = [SimpleNamespace(platform="gpu"), *devices[1:]]  # only the first is asked
    monkeypatch.setattr(jax, "devices", lambda: as_gpu)
    monkeypatch.setattr(jax, "make_mesh", lambda *_, devices: devices)
    for version, slow in (("0.10.2", True), ("0.11.1", False)):
        monkeypatch.setattr(jaxlib, "__version__", version)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            mesh.make("data=1")
        assert [str(one.message).startswith("jaxlib 0.10.2 on CUDA") for one in caught] == (
            [True] if slow else []
        )
