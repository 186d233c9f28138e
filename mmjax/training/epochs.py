"""An epoch of T trials: in one go or, so that a long one can be saved, in parts.

Between two parts an epoch is its state, what was redrawn for it and the losses so far; a checkpoint
then holds all of them, and what goes on from it ends bit for bit as it would have.
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
    """Where an epoch stands between two of its parts."""

    redrawn: Tree  # of the trials that are computed, which may be fewer than T
    losses: np.ndarray  # [T, steps so far]

    @property
    def step(self) -> int:
        """How many steps are done."""
        return self.losses.shape[1]


def run(
    trials: ensemble.Ensemble,
    state: Tree,
    active: np.ndarray,
    timing: dict[str, Any],
    middle: Middle | None = None,
) -> Iterator[tuple[Tree, np.ndarray, Middle | None]]:
    """Yields the state after each part of an epoch of the active trials, the losses so far [T,
    steps], zeros of the others, and where the epoch stands: None at its end.

    A state that was given or yielded is donated to the next part.
    """
    few, places = _few(trials, active)
    own = state if few is trials else trial_axis.take(state, places)
    done = middle.step if middle else 0
    losses = np.zeros((len(active), trials.steps), np.float32)
    losses[:, :done] = middle.losses if middle else 0
    compile_programs(few, timing, done)
    redrawn, spent = middle.redrawn if middle else None, 0.0
    whole = middle is None and len(trials.parts()) == 1
    for part in trials.parts(done):
        begin = time.perf_counter()
        with jax.transfer_guard("disallow"):
            arguments = few.arguments(own, active[places])
            if whole:
                own, found = few.program(*arguments)
            else:
                if redrawn is None:
                    redrawn = few.redraw_program(*arguments[:2], arguments[3])
                own, found = few.part_program(len(part))(
                    *arguments[:3], redrawn, few.place(part.start), *arguments[3:]
                )
        state = own if few is trials else trial_axis.put(state, places, own)
        losses[places, part.start : part.stop] = jax.device_get(found)
        spent += time.perf_counter() - begin
        if part.stop < trials.steps:
            yield state, losses, Middle(redrawn, losses[:, : part.stop])
    timing["epoch_s"].append(spent)
    yield state, losses, None


def compile_programs(trials: ensemble.Ensemble, timing: dict[str, Any], done: int = 0) -> None:
    """Makes the programs of an epoch, of which so many steps are done, if they are not there yet,
    and notes the time it takes."""
    begin = time.perf_counter()
    if done == 0 and len(trials.parts()) == 1:
        _ = trials.program
    else:
        _ = trials.redraw_program
        for steps in {len(part) for part in (*trials.parts(), *trials.parts(done))}:
            trials.part_program(steps)
    timing["compile_s"] += time.perf_counter() - begin


def kept(trials: ensemble.Ensemble, state: Tree, best: Tree, middle: Middle | None) -> Tree:
    """What a checkpoint holds."""
    tree = {"state": state, "best": best}
    if middle is None:
        return tree
    redrawn = {str(n): leaf for n, leaf in enumerate(jax.tree.leaves(middle.redrawn))}
    losses = meshes.put(middle.losses, meshes.replicated(trials.mesh))
    return tree | {"redrawn": redrawn, "losses": losses}


def like(trials: ensemble.Ensemble, progress: early_stopping.Progress, active: np.ndarray) -> Tree:
    """The shapes of what a checkpoint with this progress holds, and where they lie."""
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
    """Where the epoch of a restored checkpoint stands; None if it is between two epochs."""
    if "losses" not in restored:
        return None
    structure = jax.tree.structure(_few(trials, active)[0].redrawn_shapes())
    leaves = [restored["redrawn"][str(n)] for n in range(structure.num_leaves)]
    return Middle(structure.unflatten(leaves), jax.device_get(restored["losses"]))


def _few(trials: ensemble.Ensemble, active: np.ndarray) -> tuple[ensemble.Ensemble, np.ndarray]:
    """The trials that are computed, and their places: see `trial_axis.trials_to_run`."""
    places = trial_axis.trials_to_run(active, trials.mesh)
    return (trials if len(places) == len(active) else trials.take(places)), places
