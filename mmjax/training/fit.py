"""Train T trials with evaluation, early stopping and checkpoints.

The loop trains epochs of all trials, ranks them on valid, and keeps the best weights of each.
"""

import math
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.errors import Preempted
from mmjax.parallel import distributed
from mmjax.training import (
    early_stopping,
    ensemble,
    epochs,
    evaluator,
    metric_logger,
    settings,
)
from mmjax.training.checkpoint import Checkpoints

Config = settings.Config
Tree = ensemble.Tree


def fit(
    trials: ensemble.Ensemble,
    state: Tree,
    evaluate: evaluator.Evaluator,
    checkpoints: Checkpoints,
    config: Config,
    workdir: Path,
    timing: dict[str, Any],
) -> tuple[Tree, dict[str, Any]]:
    """Train T trials, each until it is finished.

    Of several trials, one that diverges ends with the best state it had. When asked to end
    (`distributed.Notice`), the loop saves after the epoch in progress, or after the part of it in
    progress (`part_steps`).

    The loop's whole memory is `progress` and the two states, and between two parts of an epoch also
    its `epochs.Middle`. A checkpoint holds all of it, and every random draw is a function of seed,
    epoch and step. So a resumed run repeats the lost epochs bit for bit.

    Returns:
      The best weights of each trial (`early_stopping.weights`), and the progress.

    Raises:
      InputError: no trial is left.
      Preempted: the loop was asked to end, and has saved.
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
        return distributed.broadcast_flag(time.monotonic() - saved >= config["checkpoint_seconds"])

    with (
        distributed.Notice() as notice,
        metric_logger.MetricLogger(workdir, total, progress["epoch"]) as log,
    ):
        while progress["epoch"] < total and not all(
            ended := early_stopping.finished(progress, config)
        ):
            active = np.logical_not(ended)
            parts = epochs.run(trials, state, active, timing, middle)
            for state, losses, middle in parts:  # noqa: B007 (the last ones are used below)
                if middle is None:
                    continue
                ends = notice.given()
                if ends or due():
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
            first = int(np.argmax(active))  # the trial that is logged
            record = {"loss": float(losses[first].mean()), "epoch_s": timing["epoch_s"][-1]}
            text = f"loss {record['loss']:.4f}"
            if active.any() and (epoch % config["eval_every"] == 0 or epoch == total):
                rankings = evaluate(state, "valid", active, lists=False)
                values = [evaluate.select(ranking) for ranking in rankings]
                best = early_stopping.improve(best, state, values, progress)
                logged = rankings[first]
                assert logged is not None  # it is active
                record |= {f"valid/{k}": v for k, v in logged.overall.items()}
                if len(values) > 1:
                    record["values"] = [v if math.isfinite(v) else None for v in values]
                text += f" valid {config['metric']} {logged.overall[config['metric']]:.4f}"
                text += f" best {progress['best'][first]:.4f} at {progress['best_epoch'][first]}"
            log.epoch(epoch, record, text)
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
    """Load a checkpoint of `fit` that has this progress.

    Returns:
      "state", "best" and, in the middle of an epoch, what `epochs.resumed` needs.
    """
    like = epochs.like(trials, progress, active_of(progress, config))
    return checkpoints.load(number, like, trials.layout.fits)


def active_of(progress: early_stopping.Progress, config: Config) -> np.ndarray:
    """Return which trials are not finished, bool [T]."""
    return np.logical_not(early_stopping.finished(progress, config))


def summary(timing: dict[str, Any], begin: float) -> dict[str, float | None]:
    """Summarise the times of `fit` and an Evaluator, in seconds.

    Epoch and evaluation times are medians without the first value, if there are others. Compilation
    is a sum; the total counts from `begin`.
    """

    def median(values: list[float]) -> float | None:
        return round(statistics.median(values), 4) if values else None

    epoch_times = timing["epoch_s"]
    return {
        "compile_s": round(timing["compile_s"], 3),
        "epoch_s": median(epoch_times[1:] or epoch_times),
        "eval_s": median(timing["eval_s"][1:] or timing["eval_s"]),
        "total_s": round(time.perf_counter() - begin, 3),
    }
