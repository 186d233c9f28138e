"""Group trials into programs and build their ensembles.

It also finds how many trials train at a time.
"""

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

SHARE = 0.6  # share of free memory for a program; evaluation and the host need the rest


class Packer:
    """Builder of ensembles that groups trials by program.

    Trials that differ in traced values share a program. So do those on features of the same shapes
    where trials run side by side or are split over devices, unless a recommender makes something of
    other shapes of them (a graph with fewer edges, say) or rejects one of them; that is found out
    when they are built. One CPU, which runs trials in turn, would gain nothing by it, and processes
    that share a sweep would have less to share.
    """

    def __init__(self, resources: Resources, most: int = 0):
        """Keep the resources and the number of trials per program.

        Args:
          most: trials of a program at a time; 0 for as many as memory holds.
        """
        self._shelf, self._most = resources, most
        self._sizes: dict[str, int] = {}  # by program
        self._apart: set[str] = set()  # keys of programs that several features cannot share
        self._meshes: dict[str, Mesh] = {}  # by a config's `mesh`
        self._last: tuple[str, tuple[str, ...], ensemble.Ensemble] | None = None

    def groups(self, trials: Sequence[space.Trial]) -> list[list[space.Trial]]:
        """Group trials by the program that trains them.

        Each trial comes once, in the order given.
        """
        return by_program(trials, self._key)

    def size(self, group: Sequence[space.Trial]) -> int:
        """Return how many trials of a group to train at once.

        It is all of them if the config does not even build.

        Raises:
          trial_axis.Unlike: as `build`.
        """
        key = self._key(group[0])
        if not self._most and key not in self._sizes:
            try:
                self._sizes[key] = most_at_once(self.build, group)
            except trial_axis.Unlike:
                raise
            except (ValueError, TypeError):  # training reports the error and notes it in the ledger
                self._sizes[key] = len(group)
        return self._most or self._sizes[key]

    def build(self, trials: Sequence[space.Trial]) -> ensemble.Ensemble:
        """Build the ensemble of these trials.

        Copies of the last trial are added where the mesh's `trial` axis wants more. The last
        ensemble is kept, and given other points if it can be.

        Raises:
          trial_axis.Unlike: their features need programs of their own, or do not fit into memory
            in one program; ask for the groups again.
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
            seeds_and_hypers = experiment.seeds_and_hypers(config, points)
            return self._last[2].given(**seeds_and_hypers, variant=variant)
        self._last = None  # frees its arrays before others are made
        stores = [self._shelf.open(config | {"features": text})[1] for text in texts]
        try:
            size = sum(
                4 * math.prod(store.shape) for features in stores for store in features.values()
            )
            if len(texts) > 1 and 2 * size > SHARE * meshes.free_memory(grid):
                raise trial_axis.Unlike("their features do not fit into memory together")
            built = experiment.trials(config, self.data(config), stores, points, variant)
        except ValueError as error:  # at least one of them cannot be built
            if len(texts) == 1:
                raise
            self._apart.add(key)
            raise trial_axis.Unlike(str(error)) from error
        self._last = key, texts, built
        return built

    def data(self, config: space.Config) -> datasets.Dataset:
        return self._shelf.dataset(config)

    def _key(self, trial: space.Trial) -> str:
        """Return the part of a config that one program's trials share."""
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
    """Group trials of the same key.

    Each trial comes once, in the order given.
    """
    groups: dict[str, dict[str, space.Trial]] = {}
    for trial in trials:
        groups.setdefault(key(trial), {})[trial.id] = trial
    return [list(group.values()) for group in groups.values()]


def most_at_once(
    build: Callable[[Sequence[space.Trial]], ensemble.Ensemble], group: Sequence[space.Trial]
) -> int:
    """Return the most trials whose program fits into free memory.

    It is the largest of T, T / 2, ... trials of the group.
    """
    count = len(group)
    while count > 1:
        trials = build(group[:count])
        if not trials.trainable or needed(trials) <= SHARE * meshes.free_memory(trials.mesh):
            return count
        count = -(-count // 2)
    return 1


def needed(trials: ensemble.Ensemble) -> int:
    """Return the bytes that training these trials takes per device.

    They are the program's own arguments, scratch and outputs (less outputs in donated memory), as
    XLA counts them, and beside them one more state and one set of weights: the best weights so far,
    and the copy for the checkpoint that is being written.
    """
    state, memory = trials.shapes(), trials.program.memory_analysis()
    kept = (nbytes(state) + nbytes(early_stopping.weights(state))) // trials.mesh.shape["trial"]
    inside = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return inside + memory.output_size_in_bytes - memory.alias_size_in_bytes + kept


def nbytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
