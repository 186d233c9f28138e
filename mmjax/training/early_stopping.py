"""Which of T trials go on, and what is kept of each: its best value, epoch and weights.

`Progress` is JSON, so that a checkpoint can hold it. Finished trials are derived from it, never
noted.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.errors import InputError
from mmjax.parallel import mesh as meshes

Tree = Any
Progress = dict[str, Any]


def begin(count: int) -> Progress:
    """Of T trials before their first epoch; an epoch of divergence is 0 for never."""
    zeros = [0] * count
    return {"epoch": 0, "best": [None] * count, "best_epoch": zeros, "diverged": list(zeros)}


def weights(state: Tree) -> Tree:
    """What of a state scores items, and the epoch it is from: the rest is the optimiser's."""
    return {name: state[name] for name in ("params", "drawn", "epoch")}


def finished(progress: Progress, config: Mapping[str, Any]) -> list[bool]:
    """Which trials diverged, or have not improved for `patience` evaluations (0: never)."""
    waited = [(progress["epoch"] - best) // config["eval_every"] for best in progress["best_epoch"]]
    late = [0 < config["patience"] <= times for times in waited]
    return [a or b > 0 for a, b in zip(late, progress["diverged"], strict=True)]


def improve(best: Tree, state: Tree, values: Sequence[float], progress: Progress) -> Tree:
    """Keeps the weights of the trials whose value is better (-inf is never), notes value, epoch."""
    known = [-math.inf if best is None else best for best in progress["best"]]
    better = np.greater(values, known)
    for trial in np.flatnonzero(better):
        progress["best"][trial], progress["best_epoch"][trial] = values[trial], progress["epoch"]
    return _where(better, weights(state), best) if better.any() else best


def drop_diverged(state: Tree, best: Tree, losses: np.ndarray, progress: Progress) -> Tree:
    """The state with the best weights of each trial that has left the finite numbers, in its losses
    [T, steps] or its parameters; notes them in `progress`.

    Raises:
      InputError: no trial is left; it names the step.
    """
    fine = np.isfinite(losses).all(axis=1) & np.asarray(_finite(state["params"]))
    if fine.all():
        return state
    epoch = progress["epoch"]
    for trial in np.flatnonzero(~fine):
        progress["diverged"][trial] = epoch
        print(f"trial {trial} diverged in epoch {epoch}", flush=True)
    if all(progress["diverged"]):
        raise InputError(f"{_fault(losses)} of epoch {epoch}; lower the rate or check the features")
    return state | _where(np.equal(progress["diverged"], 0), weights(state), best)


def _fault(losses: np.ndarray) -> str:
    bad = np.argwhere(~np.isfinite(losses))
    if not len(bad):
        return "parameters are not finite after the last step"
    trial, step = bad[np.argmin(bad[:, 1])]
    return f"the loss is {losses[trial, step]} at step {step + 1} of {losses.shape[1]}"


def _finite(params: Tree) -> jax.Array:
    """Whether all values of a trial are finite, bool [T], for every process to read."""
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    return jax.jit(_finite_trials, out_shardings=meshes.replicated(mesh))(params)


def _finite_trials(params: Tree) -> jax.Array:
    each = [jnp.isfinite(x).reshape(x.shape[0], -1).all(axis=1) for x in jax.tree.leaves(params)]
    return jnp.stack(each).all(axis=0)


def _where(chosen: Sequence[bool], new: Tree, old: Tree) -> Tree:
    """`new` of the chosen trials and `old` of the others; copies."""
    if all(chosen):
        return jax.tree.map(jnp.copy, new)

    def shaped(x):
        return np.reshape(chosen, (-1,) + (1,) * (x.ndim - 1))

    return jax.tree.map(lambda x, y: jnp.where(shaped(x), x, y), new, old)
