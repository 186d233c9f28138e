"""Tables with a row for each user, item or node, split by rows over the devices of a mesh.

They are split over `model`, and over `data` within it: the rows that a batch names travel then,
not the gradients of whole tables. What leaves a program must divide by the number of devices, so at
rest (state, features, checkpoints) a table is filled up with rows of zeros; within a program it has
as many rows as there are users or items, and XLA keeps each row where it lies.
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
    """How many devices share a table: one where the mesh splits trials, each then has its own
    tables whole. (XLA's partitioner fails on tables split within a part of a mesh.)"""
    if mesh.shape["trial"] > 1:
        return 1
    return math.prod(mesh.shape[axis] for axis in AXES)


def current_mesh() -> AbstractMesh | None:
    """The mesh that the program being traced is for, None where it does not split tables."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or shard_count(mesh) == 1 else mesh


def on_each_device(
    function: Callable, mesh: AbstractMesh, in_specs: Any, out_specs: Any
) -> Callable:
    """`function` of each device's own part; to be called where `mesh` is the `current_mesh` one."""
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def pad_axis(x: Any, multiple: int, axis: int = 0) -> Any:
    """An array with zeros behind, so that an axis is a multiple."""
    lacking = -x.shape[axis] % multiple
    if not lacking:
        return x
    if isinstance(x, LazyFeatures):
        return replace(x, shape=(x.shape[0] + lacking, x.shape[1]))
    widths = [(0, lacking if n == axis else 0) for n in range(x.ndim)]
    return (np if isinstance(x, np.ndarray) else jnp).pad(x, widths)


@dataclass(frozen=True)
class Layout:
    """Which arrays are split: those whose leading axis counts what `counts` names."""

    mesh: Mesh
    counts: frozenset[int]

    def splits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape, that of a single trial and catalogue, is split."""
        return shard_count(self.mesh) > 1 and len(shape) > 0 and shape[0] in self.counts

    def pad(self, tree: Tree) -> Tree:
        """As it is at rest."""
        many = shard_count(self.mesh)
        return jax.tree.map(lambda x: pad_axis(x, many) if self.splits(x.shape) else x, tree)

    def unpad(self, tree: Tree, like: Tree) -> Tree:
        """As it is in programs, of what `pad` gave; `like` has the shapes from before."""

        def cut(x: jax.Array, like: Any) -> jax.Array:
            if not self.splits(like.shape):
                return x
            return self.constrain(x[: like.shape[0]], AXES)

        return jax.tree.map(cut, tree, like)

    def constrain(self, x: jax.Array, *axes: Any) -> jax.Array:
        """Lays an array within a program over these axes of the mesh, one for each of its own; in
        a `shard_map` over other axes, of the mesh as it is there."""
        within = jax.sharding.get_abstract_mesh()
        mesh = self.mesh if within.empty else within
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*axes)))

    def constrain_batch(self, x: jax.Array) -> jax.Array:
        """Rows of a batch, or of scores, over `data`, where they divide; items over `model`."""
        if self.mesh.shape["data"] == 1 or x.shape[0] % self.mesh.shape["data"]:
            return x
        return (
            self.constrain(x, "data", "model")
            if self.splits(x.shape[1:])
            else self.constrain(x, "data")
        )

    def constrain_ranking(self, table: jax.Array) -> jax.Array:
        """Rows of a table over `model` alone, while users are ranked over `data`."""
        return self.constrain(table, "model") if self.splits(table.shape) else table

    def padded_shapes(self, like: Tree, trials: int) -> Tree:
        """Shapes of the state of so many trials at rest, and where it lies; `like` is a trial's."""
        trial, many = meshes.trials(self.mesh).spec[0], shard_count(self.mesh)

        def one(x: Any) -> jax.ShapeDtypeStruct:
            shape, spec = x.shape, PartitionSpec(trial)
            if self.splits(shape):
                shape = (-(-shape[0] // many) * many, *shape[1:])
                spec = PartitionSpec(trial, AXES)
            where = NamedSharding(self.mesh, spec)
            return jax.ShapeDtypeStruct((trials, *shape), x.dtype, sharding=where)

        return jax.tree.map(one, like)

    def fits(self, theirs: tuple[int, ...], ours: tuple[int, ...]) -> bool:
        """Whether two shapes at rest, from meshes that may differ, are of the same table."""
        if theirs == ours:
            return True
        filled = len(ours) > 1 and any(n <= min(theirs[1], ours[1]) for n in self.counts)
        return filled and (theirs[:1], theirs[2:]) == (ours[:1], ours[2:])


def shardings(tree: Tree) -> Tree:
    """Where the arrays of a tree lie."""
    return jax.tree.map(lambda x: x.sharding, tree)
