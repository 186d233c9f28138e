"""Rank items for the users of a split, during and after training."""

import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mmjax.data import dataset as datasets
from mmjax.evaluation import protocol as protocols
from mmjax.evaluation import ranking
from mmjax.parallel import mesh as meshes
from mmjax.parallel import trial_axis
from mmjax.training import early_stopping, ensemble, settings


class Evaluator:
    """Callable that ranks a split with the trials of a state.

    It compiles one program for each split and number of trials, and stores the times in `timing`.
    """

    def __init__(
        self,
        trials: ensemble.Ensemble,
        tasks: protocols.Tasks,
        config: settings.Config,
        data: datasets.Dataset,
        timing: dict[str, Any],
    ):
        self._trials, self._tasks, self._config, self._timing = trials, tasks, config, timing
        self._protocol = protocols.find(config["protocol"], config["threshold"])
        self._popularity = np.bincount(data.train.item, minlength=data.n_items)
        self._n_users, self._n_items = data.n_users, data.n_items
        self._compiled: dict[tuple[str, int], Any] = {}
        self._chunks: dict[str, ranking.Chunks] = {}
        timing.setdefault("eval_s", [])

    def __call__(
        self,
        state: ensemble.Tree,
        split: str,
        active: Sequence[bool] | np.ndarray | None = None,
        *,
        lists: bool = True,
    ) -> list[ranking.Ranking | None]:
        """Rank a split with each active trial.

        Args:
          active: which trials to rank, [T]; all by default.
          lists: False leaves out the metrics of the lists' composition.

        Returns:
          A ranking for each trial, None for a trial that is not active.
        """
        trials, state = self._trials, early_stopping.weights(state)
        flags = np.ones(len(trials.keys), bool) if active is None else np.asarray(active)
        indices = trial_axis.trials_to_run(flags, trials.mesh)
        if len(indices) < len(flags):
            trials, state = trials.take(indices), trial_axis.take(state, indices)
        program, chunks = self._compile(trials, state, split)
        begin = time.perf_counter()
        arguments = (state, trials.variant, trials.flags(flags[indices]), trials.frozen, chunks)
        result = jax.device_get(program(*arguments))
        rankings: list[ranking.Ranking | None] = [None] * len(flags)
        for position, trial in enumerate(indices):
            if flags[trial]:
                rankings[trial] = ranking.summarise(
                    ensemble.pick(result, position),
                    self._tasks[split],
                    popularity=self._popularity,
                    n_users=self._n_users,
                    cutoffs=self._config["cutoffs"] if lists else (),
                )
        self._timing["eval_s"].append(time.perf_counter() - begin)
        return rankings

    def compile(self, split: str) -> None:
        """Compile the program of a split, without ranking."""
        self._compile(self._trials, early_stopping.weights(self._trials.shapes()), split)

    def select(self, found: ranking.Ranking | None) -> float:
        """Return the metric value that selects the best epoch.

        It is rounded where the protocol rounds it, and -inf where there is no ranking.
        """
        if found is None:
            return -math.inf
        value, digits = found.overall[self._config["metric"]], self._protocol.round_selection
        return value if digits is None else round(value, digits)

    def _compile(
        self, trials: ensemble.Ensemble, state: ensemble.Tree, split: str
    ) -> tuple[Any, ranking.Chunks]:
        """Return the program and the user chunks of a split.

        The program is compiled on first use, once for each split and number of trials.
        """
        grid, spread = trials.mesh, trials.mesh.shape["data"]
        if split not in self._chunks:
            scores = (
                ranking.CPU_CHUNK if meshes.is_cpu(grid) else ranking.ACCELERATOR_CHUNK * spread
            )
            chunks = ranking.chunk(
                self._tasks[split], self._n_items, multiple=spread, scores=scores
            )
            self._chunks[split] = meshes.put(chunks, meshes.replicated(grid))
        key, chunks = (split, len(trials.keys)), self._chunks[split]
        if key not in self._compiled:
            program = trials.evaluate(self._config["cutoffs"], map_capped=self._protocol.map_capped)
            begin = time.perf_counter()
            arguments = (state, trials.variant, trials.flags(), trials.frozen, chunks)
            with meshes.use(grid):
                self._compiled[key] = program.lower(*arguments).compile()
            self._timing["compile_s"] += time.perf_counter() - begin
        return self._compiled[key], chunks
