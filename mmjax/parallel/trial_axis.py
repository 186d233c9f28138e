"""Run a function of one trial over T trials.

Once some trials have stopped, it runs over fewer of them. A CPU runs trials in turn: one trial
keeps its cores busy, the tables of one stay in cache, each gives bit for bit the result of a single
run, and a stopped one costs nothing. An accelerator runs them side by side (vmap), where stopped
trials would still be computed. A mesh's `trial` axis gives each of its n devices T / n trials, and
a device whose trials have all stopped would wait. So in both of these cases the running trials are
taken out into a program of T/2, T/4, ... trials, and put back after an epoch.
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
    """Error: one program cannot serve these trees."""


def over_trials(function: Callable, batched: int, mesh: Mesh) -> Callable:
    """Map a function of one trial over T trials.

    The first `batched` arguments get a trial axis. T must be a multiple of the mesh's `trial` axis.
    Arrays with a trial axis have the sharding of `meshes.trials`, before and after.
    """

    def call(*args: Any) -> Any:
        trials, shared = args[:batched], args[batched:]
        if jax.tree.leaves(trials)[0].shape[0] == 1:
            out = function(*jax.tree.map(lambda x: x[0], trials), *shared)
            return jax.tree.map(lambda x: x[None], out)
        if meshes.is_cpu(mesh):
            return jax.lax.map(lambda trial: function(*trial, *shared), trials)
        return jax.vmap(lambda *trial: function(*trial, *shared))(*trials)

    if mesh.shape["trial"] == 1:
        return call
    trial, replicated = PartitionSpec("trial"), PartitionSpec()

    def split(*args: Any) -> Any:
        specs = (trial,) * batched + (replicated,) * (len(args) - batched)
        # Rows may still be split over `data` within: the compiler handles that axis.
        local = jax.shard_map(
            call, mesh=mesh, in_specs=specs, out_specs=trial, axis_names={"trial"}, check_vma=False
        )
        return local(*args)

    return split


def run_if(active: jax.Array, function: Callable[[Tree], Tree], otherwise: Tree) -> Tree:
    """Return `function(otherwise)` if a trial is active, else `otherwise`.

    It is a loop of one or zero turns. A `cond` would do, but it compiles SMORE's step differently
    from that of a single trial, and the last bits differ.
    """
    return jax.lax.fori_loop(0, active.astype(np.int32), lambda _, x: function(x), otherwise)


def widths(total: int, mesh: Mesh) -> list[int]:
    """Return the numbers of trials that have a program.

    These are T, T/2, T/4, ..., each rounded up to a multiple of the `trial` axis; only T for CPU
    trials that run in turn.
    """
    devices, counts = mesh.shape["trial"], [total]
    if devices == 1 and meshes.is_cpu(mesh):
        return counts
    while (half := -(-counts[-1] // (2 * devices)) * devices) < counts[-1]:
        counts.append(half)
    return counts


def trials_to_run(active: Sequence[bool] | np.ndarray, mesh: Mesh) -> np.ndarray:
    """Return which of T trials to compute, each index once.

    These are all T trials. Once at most half are active, these are the active ones and as many
    others as make T/2, T/4, ..., spread evenly over the mesh's `trial` axis.
    """
    total, devices = len(active), mesh.shape["trial"]
    width = min(n for n in widths(total, mesh) if n >= np.sum(active))
    if width == total:
        return np.arange(total)
    first = np.argsort(np.logical_not(active), kind="stable")[:width]
    return first.reshape(-1, devices).T.ravel()


def take(tree: Tree, places: jax.Array | np.ndarray) -> Tree:
    """Return the trials at these indices of a tree."""
    return jax.jit(_take, out_shardings=table_sharding.shardings(tree))(tree, places)


def put(tree: Tree, places: jax.Array | np.ndarray, part: Tree) -> Tree:
    """Return the tree with the trials of `part` at these indices.

    The tree is donated.
    """
    return jax.jit(_put, donate_argnums=0, out_shardings=table_sharding.shardings(tree))(
        tree, places, part
    )


def _take(tree: Tree, places: jax.Array) -> Tree:
    return jax.tree.map(lambda x: x[places], tree)


def _put(tree: Tree, places: jax.Array, part: Tree) -> Tree:
    return jax.tree.map(lambda x, y: x.at[places].set(y), tree, part)


def stack(trees: Sequence[Tree]) -> tuple[Tree, frozenset[int]]:
    """Stack V trees into one, where their leaves differ.

    Leaves that are not equal in all trees get a leading axis [V].

    Returns:
      The tree, and the numbers of the stacked leaves.

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
        if all(leaf is column[0] or bool(jnp.array_equal(leaf, column[0])) for leaf in column[1:]):
            merged.append(column[0])
        else:
            merged.append(jnp.stack(column))
            varied.append(number)
    return structures[0].unflatten(merged), frozenset(varied)


def choose(tree: Tree, varied: frozenset[int], variant: jax.Array | int) -> Tree:
    """Return one trial's tree from the result of `stack`."""
    leaves, structure = jax.tree.flatten(tree)
    chosen = [x[variant] if n in varied else x for n, x in enumerate(leaves)]
    return jax.tree.unflatten(structure, chosen)
