"""Run an epoch of T trials, at once or in parts.

Parts allow a long epoch to be saved. Between two parts an epoch is its state, the arrays that were
redrawn for it and the losses so far. A checkpoint then holds all three, and a resumed epoch ends
bit for bit as it would have.
"""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from mmjax.parallel import mesh as meshes
from mmjax.parallel import trial_axis
from mmjax.training import early_stopping, ensemble

Tree = Any


class Middle(NamedTuple):
    """State of an epoch between two of its parts."""

    redrawn: Tree  # of the trials that are computed, which may be fewer than T
    losses: np.ndarray  # [T, steps so far]

    @property
    def step(self) -> int:
        """Return the number of steps that are done."""
        return self.losses.shape[1]


def run(
    trials: ensemble.Ensemble,
    state: Tree,
    active: np.ndarray,
    timing: dict[str, Any],
    middle: Middle | None = None,
) -> Iterator[tuple[Tree, np.ndarray, Middle | None]]:
    """Yield the state after each part of an epoch.

    A state that was passed in or yielded is donated to the next part.

    Yields:
      The state; the losses [T, steps], zeros for inactive trials and for steps to come; and the
      `Middle` of the epoch, None at its end.
    """
    running, indices = _few(trials, active)
    part_state = state if running is trials else trial_axis.take(state, indices)
    done = middle.step if middle else 0
    losses = np.zeros((len(active), trials.steps), np.float32)
    losses[:, :done] = middle.losses if middle else 0
    compile_programs(running, timing, done)
    redrawn, spent = middle.redrawn if middle else None, 0.0
    one_part = middle is None and len(trials.parts()) == 1
    for part in trials.parts(done):
        begin = time.perf_counter()
        with jax.transfer_guard("disallow"):
            arguments = running.arguments(part_state, active[indices])
            if one_part:
                part_state, part_losses = running.program(*arguments)
            else:
                if redrawn is None:
                    redrawn = running.redraw_program(*arguments[:2], arguments[3])
                part_state, part_losses = running.part_program(len(part))(
                    *arguments[:3], redrawn, running.place(part.start), *arguments[3:]
                )
        state = part_state if running is trials else trial_axis.put(state, indices, part_state)
        losses[indices, part.start : part.stop] = jax.device_get(part_losses)
        spent += time.perf_counter() - begin
        if part.stop < trials.steps:
            yield state, losses, Middle(redrawn, losses[:, : part.stop])
    timing["epoch_s"].append(spent)
    yield state, losses, None


def compile_programs(trials: ensemble.Ensemble, timing: dict[str, Any], done: int = 0) -> None:
    """Compile the programs of an epoch that are missing.

    `done` steps of the epoch are done. The time goes to `timing`.
    """
    begin = time.perf_counter()
    if done == 0 and len(trials.parts()) == 1:
        _ = trials.program
    else:
        _ = trials.redraw_program
        for steps in {len(part) for part in (*trials.parts(), *trials.parts(done))}:
            trials.part_program(steps)
    timing["compile_s"] += time.perf_counter() - begin


def kept(trials: ensemble.Ensemble, state: Tree, best: Tree, middle: Middle | None) -> Tree:
    """Return the tree that a checkpoint holds."""
    tree = {"state": state, "best": best}
    if middle is None:
        return tree
    redrawn = {str(n): leaf for n, leaf in enumerate(jax.tree.leaves(middle.redrawn))}
    losses = meshes.put(middle.losses, meshes.replicated(trials.mesh))
    return tree | {"redrawn": redrawn, "losses": losses}


def like(trials: ensemble.Ensemble, progress: early_stopping.Progress, active: np.ndarray) -> Tree:
    """Return shapes and shardings of a checkpoint with this progress."""
    state = trials.shapes()
    tree = {"state": state, "best": early_stopping.weights(state)}
    if not progress.get("step"):
        return tree
    leaves = jax.tree.leaves(_few(trials, active)[0].redrawn_shapes())
    losses = jax.ShapeDtypeStruct(
        (len(active), progress["step"]), np.float32, sharding=meshes.replicated(trials.mesh)
    )
    return tree | {"redrawn": {str(n): x for n, x in enumerate(leaves)}, "losses": losses}


def resumed(trials: ensemble.Ensemble, restored: Tree, active: np.ndarray) -> Middle | None:
    """Return the `Middle` of a restored checkpoint.

    It is None if the checkpoint is between two epochs.
    """
    if "losses" not in restored:
        return None
    shapes, structure = jax.tree.flatten(_few(trials, active)[0].redrawn_shapes())
    leaves = [restored["redrawn"][str(n)] for n in range(len(shapes))]
    return Middle(jax.tree.unflatten(structure, leaves), jax.device_get(restored["losses"]))


def _few(trials: ensemble.Ensemble, active: np.ndarray) -> tuple[ensemble.Ensemble, np.ndarray]:
    """Return the trials to compute, and their indices.

    See `trial_axis.trials_to_run`.
    """
    indices = trial_axis.trials_to_run(active, trials.mesh)
    return (trials if len(indices) == len(active) else trials.take(indices)), indices
