"""Trials to programs: which train together, how many at a time, and their ensemble."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from mmjax.data import dataset as datasets
from mmjax.parallel import mesh as meshes
from mmjax.parallel import trial_axis
from mmjax.sweep import space
from mmjax.sweep.resources import Resources
from mmjax.training import early_stopping, ensemble, experiment, settings

SHARE = 0.6  # of the free memory that a program may take; the rest is evaluation and the host's


class Packer:
    """Groups trials by program and builds their ensembles.

    Trials that differ in traced values share a program. So do those on features of the same shapes
    where trials run side by side or are split over devices, unless a recommender makes something of
    other shapes of them (a graph with fewer edges, say) or rejects one of them; that is found out
    when they are built. One CPU, which runs trials in turn, would gain nothing by it, and processes
    that share a sweep would have less to share.
    """

    def __init__(self, resources: Resources, most: int = 0):
        """`most` trials of a program at a time; 0 for as many as memory holds."""
        self._shelf, self._most = resources, most
        self._sizes: dict[str, int] = {}  # by program
        self._apart: set[str] = set()  # programs that cannot share their features
        self._meshes: dict[str, Mesh] = {}  # by what configs say
        self._last: tuple[str, tuple[str, ...], ensemble.Ensemble] | None = None

    def groups(self, trials: Sequence[space.Trial]) -> list[list[space.Trial]]:
        """Trials that one program trains, together; each trial once, in the order given."""
        return by_program(trials, self._key)

    def size(self, group: Sequence[space.Trial]) -> int:
        """How many trials of a group to train at a time; all where the config does not even build.

        Raises:
          trial_axis.Unlike: as `build`.
        """
        key = self._key(group[0])
        if not self._most and key not in self._sizes:
            try:
                self._sizes[key] = most_at_once(self.build, group)
            except trial_axis.Unlike:
                raise
            except (ValueError, TypeError):  # its training will say what is wrong, and note it
                self._sizes[key] = len(group)
        return self._most or self._sizes[key]

    def build(self, trials: Sequence[space.Trial]) -> ensemble.Ensemble:
        """The ensemble of these trials, and copies of the last one where the mesh's `trial` axis
        wants more; what was built last is kept, and given other points if it can be.

        Raises:
          trial_axis.Unlike: their features need programs of their own, or do not fit into memory
            together; ask for the groups again.
        """
        config, key = trials[0].config, self._key(trials[0])
        settings.check(config)
        texts = tuple(dict.fromkeys(trial.config["features"] for trial in trials))
        points = [space.program(trial.config)[1] for trial in trials]
        variant = [texts.index(trial.config["features"]) for trial in trials]
        grid = self._grid(config)
        lacking = -len(trials) % grid.shape["trial"]
        points, variant = points + points[-1:] * lacking, variant + variant[-1:] * lacking
        if self._last is not None and self._last[:2] == (key, texts):
            given = experiment.seeds_and_hypers(config, points)
            return self._last[2].given(**given, variant=variant)
        self._last = None  # its arrays go before others come
        stores = [self._shelf.open(config | {"features": text})[1] for text in texts]
        try:
            size = sum(4 * math.prod(one.shape) for each in stores for one in each.values())
            if len(texts) > 1 and 2 * size > SHARE * meshes.free_memory(grid):
                raise trial_axis.Unlike("their features do not fit into memory together")
            built = experiment.trials(config, self.data(config), stores, points, variant)
        except ValueError as error:  # whichever of them it is that cannot be built, if one cannot
            if len(texts) == 1:
                raise
            self._apart.add(key)
            raise trial_axis.Unlike(str(error)) from error
        self._last = key, texts, built
        return built

    def data(self, config: space.Config) -> datasets.Dataset:
        return self._shelf.dataset(config)

    def _key(self, trial: space.Trial) -> str:
        """What trials of a program share, as text."""
        shared, _ = space.program(trial.config | {"features": ""})
        key = json.dumps([shared, self._shelf.shapes(trial.config)])
        grid = self._grid(trial.config)
        in_turn = meshes.is_cpu(grid) and grid.shape["trial"] == 1
        return key + trial.config["features"] if in_turn or key in self._apart else key

    def _grid(self, config: space.Config) -> Mesh:
        if config["mesh"] not in self._meshes:
            self._meshes[config["mesh"]] = meshes.make(config["mesh"])
        return self._meshes[config["mesh"]]


def by_program(
    trials: Sequence[space.Trial], key: Callable[[space.Trial], str]
) -> list[list[space.Trial]]:
    """Trials of the same key together; each trial once, in the order given."""
    groups: dict[str, dict[str, space.Trial]] = {}
    for trial in trials:
        groups.setdefault(key(trial), {})[trial.id] = trial
    return [list(group.values()) for group in groups.values()]


def most_at_once(
    build: Callable[[Sequence[space.Trial]], ensemble.Ensemble], group: Sequence[space.Trial]
) -> int:
    """The largest of T, T / 2, ... trials of a group whose program fits into the free memory."""
    count = len(group)
    while count > 1:
        trials = build(group[:count])
        if not trials.trainable or needed(trials) <= SHARE * meshes.free_memory(trials.mesh):
            return count
        count = -(-count // 2)
    return 1


def needed(trials: ensemble.Ensemble) -> int:
    """Bytes that training these trials takes on a device, by the compiled program and the arrays
    beside it.

    The program's own arrays and scratch as XLA counts them, the best weights so far, and one copy
    of all that for the checkpoint that is being written.
    """
    state, memory = trials.shapes(), trials.program.memory_analysis()
    kept = (nbytes(state) + nbytes(early_stopping.weights(state))) // trials.mesh.shape["trial"]
    inside = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return inside + memory.output_size_in_bytes - memory.alias_size_in_bytes + kept


def nbytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
