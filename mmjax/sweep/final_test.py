"""Read the test split once for each cell's choice.

Nothing else in a sweep reads it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.core import files
from mmjax.core.errors import InputError
from mmjax.parallel import mesh as meshes
from mmjax.parallel import table_sharding
from mmjax.sweep import space
from mmjax.sweep.batching import Packer
from mmjax.sweep.leases import Leases
from mmjax.sweep.ledger import Ledger
from mmjax.sweep.plan import Plan, event
from mmjax.training import early_stopping, evaluator, experiment, results
from mmjax.training.checkpoint import Checkpoints


def test(
    plan: Plan, trials: Sequence[space.Trial], packer: Packer, ledger: Ledger, leases: Leases
) -> list[space.Trial]:
    """Read the test split for the next trials that share a program.

    Returns:
      The trials that were tested.
    """
    for group in packer.groups(trials):
        names = leases.take([trial.id for trial in group], len(group))
        mine = [trial for trial in group if trial.id in names]
        if mine:
            with leases.kept(names):
                ledger.refresh()
                mine = [trial for trial in mine if trial.id not in ledger.tested]
                if mine:
                    read_test(plan, mine, packer, ledger)
            return mine
    return []


def read_test(plan: Plan, trials: Sequence[space.Trial], packer: Packer, ledger: Ledger) -> None:
    """Rank the test split for chosen trials and write their runs.

    The trials share one program.

    Raises:
      InputError: a trial's point is not what its cell chose, or its test split was read before;
        its weights do not give the value that they were chosen for.
      trial_axis.Unlike: as `Packer.build`.
    """
    for trial in trials:
        if ledger.chosen.get(trial.cell, {}).get("point") != trial.point:
            raise InputError(f"{trial.cell} did not choose {trial.point}; it may not be tested")
        if trial.id in ledger.tested:
            raise InputError(f"the test split was read for trial {trial.id} already")
    config = trials[0].config
    ensemble, data = packer.build(trials), packer.data(config)
    shapes, replicated = early_stopping.weights(ensemble.shapes()), meshes.replicated(ensemble.mesh)
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype, sharding=replicated), shapes
    )
    loaded = [_load(plan.workdir / "weights" / trial.id, like) for trial in trials]
    loaded += loaded[-1:] * (len(ensemble.keys) - len(trials))
    state = jax.tree.map(lambda *parts: jnp.concatenate(parts), *loaded)
    state = jax.device_put(state, table_sharding.shardings(shapes))
    evaluate = evaluator.Evaluator(
        ensemble, experiment.tasks(config, data), config, data, {"compile_s": 0}
    )
    rankings = zip(evaluate(state, "valid"), evaluate(state, "test"), strict=True)
    for trial, (valid, test) in zip(trials, rankings, strict=False):  # the last ones fill up
        assert valid is not None  # every trial is active
        assert test is not None
        line = ledger.done[trial.id]
        if abs(evaluate.select(valid) - line["valid"]) > 1e-6:
            raise InputError(
                f"weights/{trial.id} rank valid at {evaluate.select(valid):.6f}, not at the "
                f"{line['valid']:.6f} they were chosen for; delete that folder, they train again"
            )
        _, stores = plan.resources.open(trial.config)
        record = results.record(trial.config, data, stores, ensemble.mesh, valid, test)
        record |= {key: line[key] for key in ("epochs", "best_epoch", "timing")}
        folder = plan.workdir / "runs" / trial.id
        folder.mkdir(parents=True, exist_ok=True)
        results.save_users(folder / "per_user.npz", {"valid": valid, "test": test})
        files.write_json(folder / "results.json", record)
    ledger.append(event("tested", trial) for trial in trials)


def _load(folder: Path, like: Any) -> Any:
    checkpoints = Checkpoints(folder)
    try:
        return checkpoints.load(0, like)
    finally:
        checkpoints.close()
