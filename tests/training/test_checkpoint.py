"""Checkpoints come back as they were, or not at all."""

import itertools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from support.fitting import same

from mmjax.core import storage
from mmjax.core.errors import InputError
from mmjax.parallel import mesh
from mmjax.training.checkpoint import Checkpoints


def tree(value, sharding=None):
    made = {
        "params": {"user": jnp.full((8, 4), float(value)), "item": jnp.arange(16.0).reshape(8, 2)},
        "epoch": jnp.asarray(int(value)),
        "key": jnp.arange(2, dtype=jnp.uint32),
    }
    if sharding is not None:
        made["params"] = jax.device_put(made["params"], sharding)
    return made


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path):
    """Where checkpoints may lie."""
    if request.param == "folder":
        return storage.path(tmp_path / "checkpoints")
    return storage.path(request.getfixturevalue("bucket").new()) / "checkpoints"


@pytest.fixture
def checkpoints(place):
    opened = Checkpoints(place)
    yield opened
    opened.close()


@pytest.mark.slow
def test_save_load_latest(checkpoints, place):
    assert checkpoints.latest() is None
    progress = {"epoch": 1, "best": [0.125, None], "done": False}
    for epoch in (1, 2, 3):
        progress["epoch"] = epoch
        checkpoints.save(epoch, tree(epoch), progress)
    progress["epoch"] = 99  # the loop goes on while the last one is written
    checkpoints.wait()
    assert checkpoints.latest() == (3, {"epoch": 3, "best": [0.125, None], "done": False})
    same(checkpoints.load(3, tree(0.0)), tree(3))
    same(checkpoints.load(2, tree(0.0)), tree(2))
    assert sorted(path.name for path in place.iterdir()) == ["2", "3"]


def test_looking_makes_no_folder(checkpoints, place):
    assert checkpoints.latest() is None
    checkpoints.close()
    assert not place.exists()


@pytest.mark.slow
def test_another_process_finds_them(checkpoints, place):
    checkpoints.save(5, tree(5), {"epoch": 5})
    checkpoints.wait()
    again = Checkpoints(place)
    assert again.latest() == (5, {"epoch": 5})
    same(again.load(5, tree(0.0)), tree(5))
    again.close()


@pytest.mark.slow
def test_they_move_between_shardings(checkpoints):
    rows = mesh.rows(mesh.make("data=8"))
    checkpoints.save(1, tree(1, rows), {})
    checkpoints.wait()
    same(checkpoints.load(1, tree(0.0)), tree(1))
    columns = NamedSharding(mesh.make("data=4,model=2"), PartitionSpec("data", "model"))
    loaded = checkpoints.load(1, tree(0.0, columns))
    assert loaded["params"]["user"].sharding == columns
    same(loaded, tree(1))


@pytest.mark.slow
def test_another_shape_or_structure_is_refused(checkpoints):
    checkpoints.save(1, tree(1), {})
    checkpoints.wait()
    wider = tree(0.0) | {"params": {"user": jnp.zeros((8, 5)), "item": jnp.zeros((8, 2))}}
    fewer = {name: part for name, part in tree(0.0).items() if name != "key"}
    more = tree(0.0) | {"extra": jnp.zeros(3)}
    for like, what in (
        (wider, r"params\.user is \(8, 4\), not \(8, 5\)"),
        (fewer, r"key is \(2,\), not known here"),
        (more, r"extra is not there, not \(3,\)"),
    ):
        with pytest.raises(InputError, match=f"checkpoint 1 .* does not fit .*: {what}"):
            checkpoints.load(1, like)


@pytest.mark.slow
def test_a_named_tuple_of_an_optimiser_fits(checkpoints):
    params = tree(1)["params"]
    chain = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())
    checkpoints.save(1, {"opt": chain.init(params), "drawn": {}}, {})
    checkpoints.wait()
    like = {"opt": chain.init(jax.tree.map(jnp.ones_like, params)), "drawn": {}}
    same(checkpoints.load(1, like), {"opt": chain.init(params), "drawn": {}})


def test_what_a_killed_save_left_is_not_a_checkpoint(tmp_path):
    """A kill leaves a folder with orbax's temporary name; its arrays may even look whole."""
    folder = tmp_path / "checkpoints"
    first = Checkpoints(folder)
    first.save(1, tree(1), {"epoch": 1})
    first.close()
    shutil.copytree(folder / "1", folder / "2.orbax-checkpoint-tmp")
    (folder / "2.orbax-checkpoint-tmp" / "_CHECKPOINT_METADATA").unlink(missing_ok=True)
    again = Checkpoints(folder)
    assert again.latest() == (1, {"epoch": 1})
    assert len(list(folder.iterdir())) == 2  # who only looks takes nothing away
    again.save(2, tree(2), {"epoch": 2})  # the same step, over the remains
    again.wait()
    assert again.latest() == (2, {"epoch": 2})
    same(again.load(2, tree(0.0)), tree(2))
    again.close()
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


@pytest.mark.slow
def test_what_a_killed_save_left_in_a_bucket_is_not_a_checkpoint(bucket):
    """Without its last object it is none, whatever its arrays hold; the next save clears it away,
    since another mesh may have cut them otherwise."""
    place = storage.path(bucket.new())
    first = Checkpoints(place)
    first.save(1, tree(1), {"epoch": 1})
    first.save(2, tree(2, mesh.rows(mesh.make("data=8"))), {"epoch": 2})
    first.close()
    (place / "2/checkpoint.json").unlink()
    again = Checkpoints(place)
    assert again.latest() == (1, {"epoch": 1})
    assert (place / "2").exists()  # who only looks takes nothing away
    again.save(2, tree(3), {"epoch": 2})
    again.close()
    assert again.latest() == (2, {"epoch": 2})
    same(again.load(2, tree(0.0)), tree(3))


@pytest.mark.slow
def test_rows_that_a_mesh_adds_are_filled_and_cut_in_a_bucket(bucket):
    rows = mesh.rows(mesh.make("data=8"))
    more = jax.device_put(jnp.pad(jnp.arange(20.0).reshape(10, 2), ((0, 6), (0, 0))), rows)
    saved = Checkpoints(bucket.new())
    saved.save(1, {"user": more}, {})
    saved.wait()
    for count in (10, 12, 24):
        found = saved.load(1, {"user": jnp.zeros((count, 2))}, fits=lambda one, other: True)
        np.testing.assert_array_equal(found["user"][:10], more[:10])
        assert not np.any(found["user"][10:])
    saved.close()


@pytest.mark.slow
def test_a_damaged_object_is_named(bucket):
    place = storage.path(bucket.new())
    saved = Checkpoints(place)
    saved.save(1, tree(1), {})
    saved.wait()
    chunk = place / "1/params.user/c/0/0"
    content = chunk.read_bytes()
    chunk.write_bytes(b"x" + content[1:])
    with pytest.raises(InputError, match=r"checkpoint 1 in s3://.* is damaged"):
        saved.load(1, tree(0.0))
    chunk.unlink()
    with pytest.raises(InputError, match=r"checkpoint 1 in s3://.* is damaged"):
        saved.load(1, tree(0.0))
    saved.close()


@pytest.mark.slow
def test_a_bucket_that_may_not_be_written(bucket):
    saved = Checkpoints(bucket.new())

    def save():
        saved.save(1, tree(1), {"epoch": 1})
        saved.wait()

    with (
        bucket.failing(lambda method, path: 403 if method == "PUT" else None),
        pytest.raises(InputError, match=r"s3://bucket.* cannot be written: .*AccessDenied"),
    ):
        save()
    save()  # it may again
    saved.close()
    assert saved.latest() == (1, {"epoch": 1})


@pytest.mark.slow
def test_a_bucket_that_fails_now_and_then(bucket):
    turns = itertools.count()
    saved = Checkpoints(bucket.new())
    with bucket.failing(lambda *_: 503 if next(turns) % 3 == 0 else None) as proxy:
        for epoch in (1, 2, 3):
            saved.save(epoch, tree(epoch), {"epoch": epoch})
        saved.wait()
        assert saved.latest() == (3, {"epoch": 3})
        same(saved.load(3, tree(0.0)), tree(3))
    assert proxy.failed > 10
    saved.close()
