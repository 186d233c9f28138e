"""Trials to programs, and how many of a program fit into memory at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from mmjax import ensemble, selection
from mmjax import mesh as meshes
from mmjax.sweep import space

SHARE = 0.6  # of the free memory that a program may take; the rest is evaluation and the host's


def by_program(trials: Sequence[space.Trial]) -> list[list[space.Trial]]:
    """Trials that one program trains, together; each trial once, in the order given."""
    groups: dict[str, dict[str, space.Trial]] = {}
    for trial in trials:
        shared, _ = space.program(trial.config)
        groups.setdefault(shared, {})[trial.id] = trial
    return [list(group.values()) for group in groups.values()]


def most_at_once(build: Callable[[int], ensemble.Ensemble], wanted: int) -> int:
    """The largest of wanted, wanted / 2, ... trials whose program fits into the free memory.

    Args:
      build: an ensemble of so many trials.
    """
    count = wanted
    while count > 1:
        trials = build(count)
        if not trials.trainable or needed(trials) <= SHARE * meshes.free_memory(trials.mesh):
            return count
        count = -(-count // 2)
    return 1


def needed(trials: ensemble.Ensemble) -> int:
    """Bytes that training these trials takes, by the compiled program and the arrays beside it.

    The program's own arrays and scratch as XLA counts them, the best weights so far, and one copy
    of all that for the checkpoint that is being written.
    """
    state, memory = trials.shapes(), trials.program.memory_analysis()
    kept = nbytes(state) + nbytes(selection.weights(state))
    inside = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return inside + memory.output_size_in_bytes - memory.alias_size_in_bytes + kept


def nbytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
