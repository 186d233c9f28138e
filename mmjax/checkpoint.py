"""Checkpoints of a run, by orbax: written aside while training goes on, whole or not at all."""

import copy
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from mmjax.errors import InputError

Tree = Any


class Checkpoints:
    """The checkpoints in one folder; the last two are kept.

    A checkpoint carries the last state and the best parameters so far, and as metadata the JSON
    that the loop needs to go on, so any one of them is enough to resume or to evaluate.
    """

    def __init__(self, folder: Path):
        keep = ocp.training.preservation_policies.LatestN(2)
        self._orbax = ocp.training.Checkpointer(
            Path(folder).resolve(), preservation_policy=keep, cleanup_tmp_directories=True
        )
        self._pending: ocp.AsyncResponse | None = None

    def save(self, step: int, tree: Tree, progress: dict[str, Any]) -> None:
        """Starts to save; the arrays are copied before this returns, the files follow."""
        self.wait()
        as_of_now = copy.deepcopy(progress)  # it is written later, and the loop goes on meanwhile
        self._pending = self._orbax.save_async(step, tree, custom_metadata=as_of_now)

    def wait(self) -> None:
        """Returns when the save under way, if any, is on disk."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """Step and progress of the last whole checkpoint, or None."""
        latest = self._orbax.latest
        if latest is None:
            return None
        metadata = self._orbax.metadata(latest.step)
        return latest.step, metadata.custom_metadata

    def load(self, step: int, like: Tree) -> Tree:
        """Restores a checkpoint into the shapes, types and shardings of `like`.

        Raises:
          InputError: the checkpoint has another structure or other shapes.
        """
        abstract = jax.tree.map(_abstract, like)
        try:
            return self._orbax.load(step, abstract)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"checkpoint {step} does not fit this configuration: {error}"
            ) from None

    def close(self) -> None:
        self.wait()
        self._orbax.close()


def _abstract(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
