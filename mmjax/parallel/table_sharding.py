"""Split user, item and node tables by rows over devices.

A table has a row for each user, item or node. Its rows are split over `model`, and over `data`
within it. Then the rows that a batch names travel between devices, not the gradients of whole
tables. What leaves a program must divide by the number of devices, so the state, the features and
the checkpoints hold padded tables, with rows of zeros at the end. Within a program a table has as
many rows as there are users or items, and XLA keeps each row on its device.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from mmjax.parallel import mesh as meshes
from mmjax.parallel.lazy_features import LazyFeatures

Tree = Any
AXES = ("model", "data")


def shard_count(mesh: Mesh | AbstractMesh) -> int:
    """Return the number of devices that share a table.

    It is one where the mesh splits trials: each trial then has whole tables. (XLA's partitioner
    fails on tables that are split within a part of a mesh.)
    """
    if mesh.shape["trial"] > 1:
        return 1
    return math.prod(mesh.shape[axis] for axis in AXES)


def current_mesh() -> AbstractMesh | None:
    """Return the mesh of the program being traced.

    It is None where the mesh does not split tables.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or shard_count(mesh) == 1 else mesh


def on_each_device(
    function: Callable, mesh: AbstractMesh, in_specs: Any, out_specs: Any
) -> Callable:
    """Map a function over each device's own part of the arrays.

    Call it only where `mesh` is the one from `current_mesh`.
    """
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def pad_axis(x: Any, multiple: int, axis: int = 0) -> Any:
    """Pad an axis with zeros at the end to a multiple."""
    lacking = -x.shape[axis] % multiple
    if not lacking:
        return x
    if isinstance(x, LazyFeatures):
        return replace(x, shape=(x.shape[0] + lacking, x.shape[1]))
    widths = [(0, lacking if n == axis else 0) for n in range(x.ndim)]
    return (np if isinstance(x, np.ndarray) else jnp).pad(x, widths)


@dataclass(frozen=True)
class Layout:
    """Split of tables over the devices of a mesh.

    An array is split if the length of its leading axis is one of `counts`.
    """

    mesh: Mesh
    counts: frozenset[int]

    def splits(self, shape: tuple[int, ...]) -> bool:
        """Return whether an array of this shape is split.

        The shape is that of a single trial and catalogue.
        """
        return shard_count(self.mesh) > 1 and len(shape) > 0 and shape[0] in self.counts

    def pad(self, tree: Tree) -> Tree:
        """Pad the split tables of a tree for use outside programs."""
        shards = shard_count(self.mesh)
        return jax.tree.map(lambda x: pad_axis(x, shards) if self.splits(x.shape) else x, tree)

    def unpad(self, tree: Tree, like: Tree) -> Tree:
        """Cut padded tables back to the shapes of `like`.

        Programs use this form; `like` has the shapes from before `pad`.
        """

        def cut(x: jax.Array, like: Any) -> jax.Array:
            if not self.splits(like.shape):
                return x
            return self.constrain(x[: like.shape[0]], AXES)

        return jax.tree.map(cut, tree, like)

    def constrain(self, x: jax.Array, *axes: Any) -> jax.Array:
        """Lay out an array over mesh axes within a program.

        `axes` names a mesh axis for each axis of the array. Within a `shard_map` over other axes,
        the mesh is the one of that `shard_map`.
        """
        within = jax.sharding.get_abstract_mesh()
        mesh = self.mesh if within.empty else within
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*axes)))

    def constrain_batch(self, x: jax.Array) -> jax.Array:
        """Split the rows of a batch, or of scores, over `data`.

        Rows that do not divide are not split. The items of scores are split over `model`.
        """
        if self.mesh.shape["data"] == 1 or x.shape[0] % self.mesh.shape["data"]:
            return x
        return (
            self.constrain(x, "data", "model")
            if self.splits(x.shape[1:])
            else self.constrain(x, "data")
        )

    def constrain_ranking(self, table: jax.Array) -> jax.Array:
        """Split the rows of a table over `model` only, for ranking.

        Users are ranked over `data` meanwhile.
        """
        return self.constrain(table, "model") if self.splits(table.shape) else table

    def padded_shapes(self, like: Tree, trials: int) -> Tree:
        """Return shapes and shardings of the padded state of several trials.

        `like` has the shapes of one trial.
        """
        trial, shards = meshes.trials(self.mesh).spec[0], shard_count(self.mesh)

        def one(x: Any) -> jax.ShapeDtypeStruct:
            shape, spec = x.shape, PartitionSpec(trial)
            if self.splits(shape):
                shape = (-(-shape[0] // shards) * shards, *shape[1:])
                spec = PartitionSpec(trial, AXES)
            sharding = NamedSharding(self.mesh, spec)
            return jax.ShapeDtypeStruct((trials, *shape), x.dtype, sharding=sharding)

        return jax.tree.map(one, like)

    def fits(self, theirs: tuple[int, ...], ours: tuple[int, ...]) -> bool:
        """Return whether two padded shapes belong to the same table.

        Both have a leading trial axis, and they may come from different meshes.
        """
        if theirs == ours:
            return True
        filled = len(ours) > 1 and any(n <= min(theirs[1], ours[1]) for n in self.counts)
        return filled and (theirs[:1], theirs[2:]) == (ours[:1], ours[2:])


def shardings(tree: Tree) -> Tree:
    """Return the shardings of the arrays of a tree."""
    return jax.tree.map(lambda x: x.sharding, tree)
