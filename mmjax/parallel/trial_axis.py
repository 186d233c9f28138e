"""A function of one trial over T trials, and over fewer of them once some have stopped.

A CPU runs trials in turn: one keeps its cores busy, the tables of one stay in cache, each is bit
for bit what it is alone, and one that has stopped costs nothing. An accelerator runs them side by
side (vmap), and what has stopped would be computed along. A mesh's `trial` axis gives each of its
devices T / n of them, and a device whose trials have all stopped would wait. So in both cases those
that go on are taken out into a program of T/2, T/4, ... trials, and put back after an epoch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from mmjax.parallel import mesh as meshes
from mmjax.parallel import table_sharding

Tree = Any


class Unlike(ValueError):
    """Trees that one program cannot serve."""


def over_trials(function: Callable, batched: int, mesh: Mesh) -> Callable:
    """Lifts a function of one trial to T trials: its first `batched` arguments get a trial axis.

    T must be a multiple of the mesh's `trial` axis; arrays with a trial axis lie as `meshes.trials`
    says, before and after.
    """

    def call(*args: Any) -> Any:
        trials, shared = args[:batched], args[batched:]
        if jax.tree.leaves(trials)[0].shape[0] == 1:
            out = function(*jax.tree.map(lambda x: x[0], trials), *shared)
            return jax.tree.map(lambda x: x[None], out)
        if meshes.is_cpu(mesh):
            return jax.lax.map(lambda own: function(*own, *shared), trials)
        return jax.vmap(lambda *own: function(*own, *shared))(*trials)

    if mesh.shape["trial"] == 1:
        return call
    own, whole = PartitionSpec("trial"), PartitionSpec()

    def split(*args: Any) -> Any:
        specs = (own,) * batched + (whole,) * (len(args) - batched)
        # Rows may still be spread over `data` within: that axis stays the compiler's.
        local = jax.shard_map(
            call, mesh=mesh, in_specs=specs, out_specs=own, axis_names={"trial"}, check_vma=False
        )
        return local(*args)

    return split


def run_if(active: jax.Array, function: Callable[[Tree], Tree], otherwise: Tree) -> Tree:
    """`function(otherwise)` where a trial is active, else `otherwise`: a loop of one turn or none.

    A `cond` would do, but compiles SMORE's step otherwise than that of a single trial, to other
    last bits.
    """
    return jax.lax.fori_loop(0, active.astype(np.int32), lambda _, x: function(x), otherwise)


def widths(total: int, mesh: Mesh) -> list[int]:
    """T, T/2, T/4, ...: how many of T trials there are programs for."""
    devices, found = mesh.shape["trial"], [total]
    if devices == 1 and meshes.is_cpu(mesh):
        return found
    while (half := -(-found[-1] // (2 * devices)) * devices) < found[-1]:
        found.append(half)
    return found


def trials_to_run(active: Sequence[bool], mesh: Mesh) -> np.ndarray:
    """Which of T trials to compute, each once: all of them, or once at most half are active, those
    and as many others as make T/2, T/4, ..., spread evenly over the mesh's `trial` axis."""
    total, devices = len(active), mesh.shape["trial"]
    width = min(n for n in widths(total, mesh) if n >= np.sum(active))
    if width == total:
        return np.arange(total)
    first = np.argsort(np.logical_not(active), kind="stable")[:width]
    return first.reshape(-1, devices).T.ravel()


def take(tree: Tree, places: jax.Array) -> Tree:
    """The trials at these places."""
    return jax.jit(_take, out_shardings=table_sharding.shardings(tree))(tree, places)


def put(tree: Tree, places: jax.Array, part: Tree) -> Tree:
    """The tree, which is donated, with other trials at these places."""
    return jax.jit(_put, donate_argnums=0, out_shardings=table_sharding.shardings(tree))(
        tree, places, part
    )


def _take(tree: Tree, places: jax.Array) -> Tree:
    return jax.tree.map(lambda x: x[places], tree)


def _put(tree: Tree, places: jax.Array, part: Tree) -> Tree:
    return jax.tree.map(lambda x, y: x.at[places].set(y), tree, part)


def stack(trees: Sequence[Tree]) -> tuple[Tree, frozenset[int]]:
    """V trees as one: leaves that are not equal in all get a leading axis [V]; and their numbers.

    Raises:
      Unlike: the trees do not have the same structure or shapes.
    """
    if len(trees) == 1:
        return trees[0], frozenset()
    leaves, structures = zip(*map(jax.tree.flatten, trees), strict=True)
    if any(structure != structures[0] for structure in structures):
        raise Unlike("these trees have different structures")
    merged, varied = [], []
    for number, column in enumerate(zip(*leaves, strict=True)):
        if len({(jnp.shape(x), jnp.result_type(x)) for x in column}) > 1:
            raise Unlike("these trees have arrays of different shapes")
        if all(one is column[0] or bool(jnp.array_equal(one, column[0])) for one in column[1:]):
            merged.append(column[0])
        else:
            merged.append(jnp.stack(column))
            varied.append(number)
    return structures[0].unflatten(merged), frozenset(varied)


def choose(tree: Tree, varied: frozenset[int], variant: jax.Array) -> Tree:
    """One trial's tree of what `stack` made."""
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten([x[variant] if n in varied else x for n, x in enumerate(leaves)])
