"""Save and restore a run's checkpoints while training goes on.

A checkpoint is complete or not there at all. Orbax writes it to a folder,
`object_store_checkpoint` to a URL.
"""

import copy
import operator
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from mmjax.core import storage
from mmjax.core.errors import InputError
from mmjax.training.object_store_checkpoint import Bucket, by_place

Tree = Any
TEMPORARY = ".orbax-checkpoint-tmp"  # in the name of an incomplete Orbax checkpoint


class Checkpoints:
    """Checkpoints in one folder or under one URL.

    The last two are kept. A checkpoint holds the last state and the best parameters so far, and as
    metadata the JSON that the loop needs to continue. So any one of them is enough to resume or to
    evaluate.
    """

    def __init__(self, folder: str | Path):
        self._folder = storage.path(folder)
        self._keeper = (Bucket if storage.remote(folder) else Folder)(self._folder)

    def save(self, step: int, tree: Tree, progress: dict[str, Any]) -> None:
        """Start to save a checkpoint.

        The arrays are copied before this returns; the files are written later.
        """
        self._keeper.save(step, tree, progress)

    def wait(self) -> None:
        """Wait until the current save, if any, is complete.

        It is then on disk or in the bucket.
        """
        self._keeper.wait()

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """Return step and progress of the last complete checkpoint, or None."""
        return self._keeper.latest()

    def load(self, step: int, like: Tree, fits: Callable[..., bool] = operator.eq) -> Tree:
        """Restore a checkpoint into the form of `like`.

        Args:
          like: shapes, types and shardings of the result.
          fits: takes the shape of an array in the checkpoint and its shape in `like`; returns
            whether the array may be cut, or filled up with zeros, to that.

        Raises:
          InputError: the checkpoint has another structure or other shapes, or is damaged.
        """
        theirs = self._keeper.shapes(step)
        ours = {name: tuple(array.shape) for name, array in by_place(like).items()}
        for name in sorted(theirs.keys() | ours.keys()):
            pair = theirs.get(name), ours.get(name)
            if None in pair or not fits(*pair):
                raise InputError(
                    f"checkpoint {step} in {self._folder} does not fit this configuration: {name} "
                    f"is {theirs.get(name, 'not there')}, not {ours.get(name, 'known here')}; "
                    "delete the workdir to start over"
                )
        try:
            return self._keeper.restore(step, like)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise InputError(
                f"checkpoint {step} in {self._folder} is damaged; delete its folder to go on from "
                f"an earlier one ({str(error).splitlines()[0][:200]})"
            ) from None

    def close(self) -> None:
        self._keeper.close()


class Folder:
    """Checkpoint folder on a file system, written by Orbax.

    Several processes share the file system.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._orbax: ocp.training.Checkpointer | None = None
        self._pending: ocp.AsyncResponse | None = None

    def save(self, step: int, tree: Tree, progress: dict[str, Any]) -> None:
        if self._pending is None and jax.process_index() == 0:
            # Delete what a killed save left. A reader must not: the save may be another process's.
            for remains in self._folder.glob(f"*{TEMPORARY}*"):
                shutil.rmtree(remains, ignore_errors=True)
        self.wait()
        snapshot = copy.deepcopy(progress)  # written later, while the loop changes it
        self._pending = self._open().save_async(step, tree, custom_metadata=snapshot)

    def wait(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        latest = self._open().latest if self._folder.is_dir() else None
        if latest is None:
            return None
        metadata = self._open().metadata(latest.step)
        return latest.step, metadata.custom_metadata

    def shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        # Orbax reports a mismatch in thousands of words, and leaves coroutines unawaited.
        stored = self._open().metadata(step).metadata
        return {name: tuple(array.shape) for name, array in by_place(stored).items()}

    def restore(self, step: int, like: Tree) -> Tree:
        lenient = ocp.Context()
        lenient.array.loading.enable_padding_and_truncation = True
        with lenient:
            return self._open().load(step, jax.tree.map(_abstract, like))

    def close(self) -> None:
        self.wait()
        if self._orbax is not None:
            self._orbax.close()
            self._orbax = None

    def _open(self) -> ocp.training.Checkpointer:
        """Return the Orbax checkpointer, opened on first use.

        Opening makes the folder, which a process that only reads must not do.
        """
        if self._orbax is None:
            keep = ocp.training.preservation_policies.LatestN(2)
            self._orbax = ocp.training.Checkpointer(
                self._folder.resolve(), preservation_policy=keep, cleanup_tmp_directories=False
            )
        return self._orbax


def _abstract(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
