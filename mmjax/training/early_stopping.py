"""Track the best epoch and early stopping of T trials.

The best value, epoch and weights of each trial are kept. `Progress` is JSON, so that a checkpoint
can hold it. Finished trials are derived from it and never stored.
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
    """Return the progress of T trials before their first epoch.

    In "diverged", epoch 0 means never.
    """
    zeros = [0] * count
    return {"epoch": 0, "best": [None] * count, "best_epoch": zeros, "diverged": list(zeros)}


def weights(state: Tree) -> Tree:
    """Return the part of a state that scores items, with its epoch.

    The rest of the state belongs to the optimiser.
    """
    return {name: state[name] for name in ("params", "drawn", "epoch")}


def finished(progress: Progress, config: Mapping[str, Any]) -> list[bool]:
    """Return which of T trials diverged or stopped early.

    A trial stops if it has not improved for `patience` evaluations (0: never).
    """
    waited = [(progress["epoch"] - best) // config["eval_every"] for best in progress["best_epoch"]]
    late = [0 < config["patience"] <= times for times in waited]
    return [
        is_late or diverged > 0
        for is_late, diverged in zip(late, progress["diverged"], strict=True)
    ]


def improve(best: Tree, state: Tree, values: Sequence[float], progress: Progress) -> Tree:
    """Keep the weights of the trials whose value is better.

    Their values and epochs go to `progress`. A value of -inf is never better.
    """
    known = [-math.inf if best is None else best for best in progress["best"]]
    better = np.greater(values, known)
    for trial in np.flatnonzero(better).tolist():
        progress["best"][trial], progress["best_epoch"][trial] = values[trial], progress["epoch"]
    return _where(better, weights(state), best) if better.any() else best


def drop_diverged(state: Tree, best: Tree, losses: np.ndarray, progress: Progress) -> Tree:
    """Reset diverged trials to their best weights.

    A trial has diverged if its losses [T, steps] or its parameters are not finite. The epoch goes
    to `progress`.

    Raises:
      InputError: no trial is left; it names the step.
    """
    finite = np.isfinite(losses).all(axis=1) & np.asarray(_finite(state["params"]))
    if finite.all():
        return state
    epoch = progress["epoch"]
    for trial in np.flatnonzero(~finite):
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
    """Return whether all parameters of each trial are finite, bool [T].

    Every process can read the result.
    """
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    return jax.jit(_finite_trials, out_shardings=meshes.replicated(mesh))(params)


def _finite_trials(params: Tree) -> jax.Array:
    flags = [jnp.isfinite(x).reshape(x.shape[0], -1).all(axis=1) for x in jax.tree.leaves(params)]
    return jnp.stack(flags).all(axis=0)


def _where(chosen: Sequence[bool] | np.ndarray, new: Tree, old: Tree) -> Tree:
    """Return `new` for the chosen trials and `old` for the others.

    The arrays are copies.
    """
    if all(chosen):
        return jax.tree.map(jnp.copy, new)

    def shaped(x: Any) -> np.ndarray:
        return np.reshape(chosen, (-1,) + (1,) * (x.ndim - 1))

    return jax.tree.map(lambda x, y: jnp.where(shaped(x), x, y), new, old)
