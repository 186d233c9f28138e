"""Save and restore a run's checkpoints in a bucket.

Orbax cannot write there (it supports only files and Google's buckets). Every process writes the
shards that it holds, by TensorStore, while training goes on:

  <step>/<array>/         zarr3, its chunks no larger than a shard, with checksums
  <step>/checkpoint.json  shapes and progress, written last, once all processes have written
"""

import json
from pathlib import Path
from typing import Any

import jax
import tensorstore as ts
from jax.experimental.array_serialization.serialization import GlobalAsyncCheckpointManager

from mmjax.core import storage
from mmjax.core.errors import InputError
from mmjax.parallel import distributed

Tree = Any
MARK = "checkpoint.json"
CHUNK_BYTES = 64 << 20
LONGEST = 3600  # seconds that processes wait for each other's shards
KEPT = 2


class Bucket:
    """Checkpoint folder at a bucket URL, used by `checkpoint.Checkpoints`."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._store: ts.KvStore | None = None
        self._manager: GlobalAsyncCheckpointManager | None = None

    def save(self, step: int, tree: Tree, progress: dict[str, Any]) -> None:
        """Start to save a checkpoint.

        The arrays are copied before this returns; the objects are written later.
        """
        self.wait()
        if self._manager is None:
            # A killed save may have left other chunks; delete them before any process writes.
            distributed.run_on_primary(self._delete_remains)
            self._manager = GlobalAsyncCheckpointManager(LONGEST)
        named = by_place(tree)
        # A snapshot of `progress`: it is written later, while the loop goes on.
        shapes = {name: list(array.shape) for name, array in named.items()}
        record = json.dumps({"progress": progress, "shapes": shapes}).encode()
        specs = [self._spec(step, name) | _layout(array) for name, array in named.items()]

        def commit() -> None:
            self._kv().write(f"{step}/{MARK}", record).result()
            for old in self._steps()[:-KEPT]:
                self._delete(old)

        try:
            self._manager.serialize(list(named.values()), specs, on_commit_callback=commit)
        except ValueError as error:
            raise self._unwritable(error) from None

    def wait(self) -> None:
        """Wait until the current save, if any, is complete."""
        if self._manager is not None:
            try:
                self._manager.wait_until_finished()
            except ValueError as error:
                raise self._unwritable(error) from None

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """Return step and progress of the last complete checkpoint, or None."""
        steps = self._steps()
        return (steps[-1], self._about(steps[-1])["progress"]) if steps else None

    def shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of each array of a checkpoint by path."""
        return {name: tuple(shape) for name, shape in self._about(step)["shapes"].items()}

    def restore(self, step: int, like: Tree) -> Tree:
        """Read arrays into the shapes, types and shardings of `like`.

        They are cut, or filled up with zeros.

        Raises:
          ValueError: an object is missing or damaged.
        """
        leaves, structure = jax.tree.flatten(like)
        return jax.tree.unflatten(
            structure,
            GlobalAsyncCheckpointManager(LONGEST).deserialize(
                [leaf.sharding for leaf in leaves],
                [self._spec(step, name) for name in by_place(like)],
                [leaf.shape for leaf in leaves],
                [leaf.dtype for leaf in leaves],
            ),
        )

    def close(self) -> None:
        self.wait()

    def _kv(self) -> ts.KvStore:
        if self._store is None:
            self._store = ts.KvStore.open(storage.key_values(self._folder)).result()
        return self._store

    def _keys(self) -> list[list[str]]:
        try:
            return [key.decode().split("/") for key in self._kv().list().result()]
        except ValueError as error:
            text = storage.first_line(error)
            raise InputError(f"{self._folder} cannot be read: {text}") from None

    def _steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, ascending."""
        return sorted(int(key[0]) for key in self._keys() if key[1:] == [MARK])

    def _about(self, step: int) -> dict[str, Any]:
        return json.loads(self._kv().read(f"{step}/{MARK}").result().value)

    def _delete(self, step: int) -> None:
        """Delete a checkpoint, its mark first.

        Then no reader takes it for a complete one.
        """
        self._kv().write(f"{step}/{MARK}", None).result()
        self._kv().delete_range(ts.KvStore.KeyRange(f"{step}/", f"{step}0")).result()

    def _delete_remains(self) -> None:
        complete = {str(step) for step in self._steps()}
        for step in {key[0] for key in self._keys()} - complete:
            self._delete(int(step))

    def _spec(self, step: int, name: str) -> dict[str, Any]:
        location = storage.key_values(self._folder)
        return storage.zarr(location | {"path": f"{location['path']}{step}/{name}/"})

    def _unwritable(self, error: Exception) -> InputError:
        return InputError(f"{self._folder} cannot be written: {storage.first_line(error)}")


def by_place(tree: Tree) -> dict[str, Any]:
    """Return the arrays of a tree by path, e.g. `opt.0.mu.user`."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def _layout(array: jax.Array) -> dict[str, Any]:
    """Return the zarr3 metadata of an array, with its chunks.

    Chunks are shards, or equal parts of one, so no two processes share a chunk.
    """
    chunk = [max(1, size) for size in array.sharding.shard_shape(array.shape)]
    row_bytes = array.dtype.itemsize
    for size in chunk[1:]:
        row_bytes *= size
    while chunk and chunk[0] * row_bytes > CHUNK_BYTES and chunk[0] % 2 == 0:
        chunk[0] //= 2
    return {"metadata": storage.zarr_metadata(array.shape, array.dtype.name, chunk)}
