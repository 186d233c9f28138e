"""Checkpoints of a run, written aside while training goes on, whole or not at all: by Orbax in a
folder, and at a URL as `object_store_checkpoint` says."""

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
TEMPORARY = ".orbax-checkpoint-tmp"  # what orbax calls a checkpoint that is not whole yet


class Checkpoints:
    """The checkpoints in one folder or under one URL; the last two are kept.

    A checkpoint carries the last state and the best parameters so far, and as metadata the JSON
    that the loop needs to go on, so any one of them is enough to resume or to evaluate.
    """

    def __init__(self, folder: str | Path):
        self._folder = storage.path(folder)
        self._keeper = (Bucket if storage.remote(folder) else Folder)(self._folder)

    def save(self, step: int, tree: Tree, progress: dict[str, Any]) -> None:
        """Starts to save; the arrays are copied before this returns, the files follow."""
        self._keeper.save(step, tree, progress)

    def wait(self) -> None:
        """Returns when the save under way, if any, is on disk or in the bucket."""
        self._keeper.wait()

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """Step and progress of the last whole checkpoint, or None."""
        return self._keeper.latest()

    def load(self, step: int, like: Tree, fits: Callable[..., bool] = operator.eq) -> Tree:
        """Restores a checkpoint into the shapes, types and shardings of `like`.

        Args:
          fits: of an array's shape there and its shape in `like`, whether it may be cut, or filled
            up with zeros, to that.

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
    """Keeps checkpoints on a file system, which several processes share, by Orbax."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._orbax: ocp.training.Checkpointer | None = None
        self._pending: ocp.AsyncResponse | None = None

    def save(self, step: int, tree: Tree, progress: dict[str, Any]) -> None:
        if self._pending is None and jax.process_index() == 0:
            # What a killed save left. Only who saves may do this: the save may be another's.
            for remains in self._folder.glob(f"*{TEMPORARY}*"):
                shutil.rmtree(remains, ignore_errors=True)
        self.wait()
        as_of_now = copy.deepcopy(progress)  # it is written later, and the loop goes on meanwhile
        self._pending = self._open().save_async(step, tree, custom_metadata=as_of_now)

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
        # Orbax would say a mismatch in thousands of words, and leave coroutines unawaited.
        kept = self._open().metadata(step).metadata
        return {name: tuple(array.shape) for name, array in by_place(kept).items()}

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
        """Orbax, from the first use on: it makes the folder, which who only looks must not."""
        if self._orbax is None:
            keep = ocp.training.preservation_policies.LatestN(2)
            self._orbax = ocp.training.Checkpointer(
                self._folder.resolve(), preservation_policy=keep, cleanup_tmp_directories=False
            )
        return self._orbax


def _abstract(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
