"""The loop: epochs of T trials together, their ranking on valid, what is kept of each."""

import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.errors import Preempted
from mmjax.data import dataset as datasets
from mmjax.evaluation import protocol as protocols
from mmjax.evaluation import ranking
from mmjax.parallel import distributed, trial_axis
from mmjax.parallel import mesh as meshes
from mmjax.training import early_stopping, ensemble, epochs, experiment, metric_logger
from mmjax.training.checkpoint import Checkpoints

Config = experiment.Config
Tree = Any


class Evaluator:
    """Ranks the trials of a state on one split; compiles once for a split and a number of trials,
    and keeps the times."""

    def __init__(
        self,
        trials: ensemble.Ensemble,
        tasks: experiment.Tasks,
        config: Config,
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
        self, state: Tree, split: str, active: Sequence[bool] | None = None, *, lists: bool = True
    ) -> list[ranking.Ranking | None]:
        """A ranking of each trial, None of one that is not active (all are if not said otherwise);
        `lists=False` leaves out the metrics of the lists' make-up."""
        trials, state = self._trials, early_stopping.weights(state)
        active = np.ones(len(trials.keys), bool) if active is None else np.asarray(active)
        places = trial_axis.places(active, trials.mesh)
        if len(places) < len(active):
            trials, state = trials.take(places), trial_axis.take(state, places)
        program, chunks = self._compile(trials, state, split)
        begin = time.perf_counter()
        arguments = (state, trials.variant, trials.flags(active[places]), trials.frozen, chunks)
        result = jax.device_get(program(*arguments))
        rankings: list[ranking.Ranking | None] = [None] * len(active)
        for place, trial in enumerate(places):
            if active[trial]:
                rankings[trial] = ranking.summarise(
                    ensemble.pick(result, place),
                    self._tasks[split],
                    popularity=self._popularity,
                    n_users=self._n_users,
                    cutoffs=self._config["cutoffs"] if lists else (),
                )
        self._timing["eval_s"].append(time.perf_counter() - begin)
        return rankings

    def compile(self, split: str) -> None:
        """Makes the program of a split; nothing is ranked."""
        self._compile(self._trials, early_stopping.weights(self._trials.shapes()), split)

    def select(self, found: ranking.Ranking | None) -> float:
        """The value that chooses the epoch, rounded where the protocol rounds it."""
        if found is None:
            return -math.inf
        value, digits = found.overall[self._config["metric"]], self._protocol.round_selection
        return value if digits is None else round(value, digits)

    def _compile(
        self, trials: ensemble.Ensemble, state: Tree, split: str
    ) -> tuple[Any, ranking.Chunks]:
        """The program of so many trials and the users of a split, made when first asked for."""
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


def fit(
    trials: ensemble.Ensemble,
    state: Tree,
    evaluate: Evaluator,
    checkpoints: Checkpoints,
    config: Config,
    workdir: Path,
    timing: dict[str, Any],
) -> tuple[Tree, dict[str, Any]]:
    """Trains T trials together, each until it is finished; returns the best states.

    Of several trials, one that diverges ends there with the best state it had; when none is left,
    InputError. Asked to end (`processes.Notice`) it saves after the epoch in flight, or the part of
    one (`part_steps`): Preempted.

    The loop's whole memory is `progress` and the two states, which is what a checkpoint holds, and
    every random draw is a function of seed, epoch and step: a resumed run repeats the lost epochs
    bit for bit.
    """
    total = config["epochs"] if trials.trainable else 0
    best = jax.tree.map(jnp.copy, early_stopping.weights(state))
    progress = early_stopping.begin(len(trials.keys))
    latest, middle = checkpoints.latest(), None
    if latest is not None:
        number, progress = latest
        restored = load(checkpoints, number, trials, progress, config)
        state, best = restored["state"], restored["best"]
        middle = epochs.resumed(trials, restored, active_of(progress, config))
        steps = f" and {progress.pop('step')} steps" if middle else ""
        print(f"resumed {workdir} after epoch {progress['epoch']}{steps}", flush=True)
    timing["epoch_s"], saved = [], time.monotonic()
    if total > progress["epoch"] and not all(early_stopping.finished(progress, config)):
        epochs.compile_programs(trials, timing)

    def save(middle: epochs.Middle | None = None) -> None:
        nonlocal saved
        log.keep()
        steps = {"step": middle.step} if middle else {}
        number = progress["epoch"] * trials.steps + (middle.step if middle else 0)
        checkpoints.save(number, epochs.kept(trials, state, best, middle), progress | steps)
        saved = time.monotonic()

    def due() -> bool:
        return distributed.told(time.monotonic() - saved >= config["checkpoint_seconds"])

    with (
        distributed.Notice() as notice,
        metric_logger.Journal(workdir, total, progress["epoch"]) as log,
    ):
        while progress["epoch"] < total and not all(
            ended := early_stopping.finished(progress, config)
        ):
            active = np.logical_not(ended)
            parts = epochs.run(trials, state, active, timing, middle)
            for state, losses, middle in parts:  # noqa: B007 (the last ones are used below)
                ends = middle is not None and notice.given()
                if middle is not None and (ends or due()):
                    save(middle)
                if ends:
                    checkpoints.wait()
                    raise Preempted(
                        f"{workdir} is saved after step {middle.step} of {trials.steps} of epoch "
                        f"{progress['epoch'] + 1}"
                    )
            epoch = progress["epoch"] = progress["epoch"] + 1
            state = early_stopping.drop_diverged(state, best, losses, progress)
            active &= np.equal(progress["diverged"], 0)
            first = int(np.argmax(active))  # the one that is spoken of
            record = {"loss": float(losses[first].mean()), "epoch_s": timing["epoch_s"][-1]}
            say = f"loss {record['loss']:.4f}"
            if active.any() and (epoch % config["eval_every"] == 0 or epoch == total):
                found = evaluate(state, "valid", active, lists=False)
                values = [evaluate.select(one) for one in found]
                best = early_stopping.improve(best, state, values, progress)
                record |= {f"valid/{k}": v for k, v in found[first].overall.items()}
                if len(values) > 1:
                    record["values"] = [v if math.isfinite(v) else None for v in values]
                say += f" valid {config['metric']} {found[first].overall[config['metric']]:.4f}"
                say += f" best {progress['best'][first]:.4f} at {progress['best_epoch'][first]}"
            log.epoch(epoch, record, say)
            last = epoch == total or all(early_stopping.finished(progress, config))
            ends = notice.given() and not last
            wanted = due()
            if last or ends or wanted:
                save()
            if ends:
                checkpoints.wait()
                raise Preempted(f"{workdir} is saved after epoch {epoch} of {total}")
    if latest is None and total == 0:
        checkpoints.save(0, {"state": state, "best": best}, progress)
    checkpoints.wait()
    return best, progress


def load(
    checkpoints: Checkpoints,
    number: int,
    trials: ensemble.Ensemble,
    progress: early_stopping.Progress,
    config: Config,
) -> Tree:
    """A checkpoint of `fit`, which has this progress: "state", "best" and, from the middle of an
    epoch, what `epochs.resumed` wants."""
    like = epochs.like(trials, progress, active_of(progress, config))
    return checkpoints.load(number, like, trials.layout.fits)


def active_of(progress: early_stopping.Progress, config: Config) -> np.ndarray:
    """Which trials go on, bool [T]."""
    return np.logical_not(early_stopping.finished(progress, config))


def summary(timing: dict[str, Any], begin: float) -> dict[str, float | None]:
    """Medians of what `fit` and an Evaluator timed, without their first; `begin` of the whole."""

    def median(values: list[float]) -> float | None:
        return round(statistics.median(values), 4) if values else None

    epochs = timing["epoch_s"]
    return {
        "compile_s": round(timing["compile_s"], 3),
        "epoch_s": median(epochs[1:] or epochs),
        "eval_s": median(timing["eval_s"][1:] or timing["eval_s"]),
        "total_s": round(time.perf_counter() - begin, 3),
    }
