"""Which points a cell tries: a grid, random draws, or TPE by Optuna in batches.

A grid and random draws are known before anything is trained. TPE learns from what is done: it is
asked for a batch, which trains as one program, and told together. Its study lies in Optuna's
journal file in the workdir; a point that was asked for stays there until it is told, so a kill
loses none and hosts that share the folder share the study.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.core.errors import InputError
from mmjax.sweep import space
from mmjax.sweep.ledger import Ledger

STARTUP = 10  # random points before TPE models anything, Optuna's own default


def points(
    cell: space.Cell, sweep: space.Config, workdir: Path, ledger: Ledger, trial_of: Any
) -> tuple[list[space.Point], int]:
    """The points of a cell that are known so far, and how many there will be.

    Args:
      trial_of: the id of a point's trial.
    """
    if not cell.axes:
        return [{}], 1
    if cell.search == "grid":
        return (every := space.grid(cell)), len(every)
    if cell.search == "random":
        return space.drawn(cell, sweep["trials"], sweep["search_seed"]), sweep["trials"]
    with ledger.locked():
        return _tpe(cell, sweep, workdir, ledger, trial_of)


def _tpe(
    cell: space.Cell, sweep: space.Config, workdir: Path, ledger: Ledger, trial_of: Any
) -> tuple[list[space.Point], int]:
    """Tells the study what is done; asks for the next batch once all that was asked is told."""
    optuna = _optuna()
    study = _study(optuna, cell, sweep, workdir)
    waiting = False
    for asked in study.get_trials(deepcopy=False):
        if asked.state.is_finished():
            continue
        trial = trial_of(_point(asked.params, cell))
        if trial in ledger.done:
            study.tell(asked.number, ledger.done[trial]["valid"])
        elif trial in ledger.failed:
            study.tell(asked.number, state=optuna.trial.TrialState.FAIL)
        else:
            waiting = True
    known = len(study.trials)
    if not waiting and known < sweep["trials"]:
        # A seed for each batch: a process that goes on would else draw its first points again.
        study.sampler = optuna.samplers.TPESampler(
            seed=sweep["search_seed"] + known, n_startup_trials=STARTUP, constant_liar=True
        )
        for _ in range(min(sweep["batch"], sweep["trials"] - known)):
            study.ask(_distributions(optuna, cell.axes))
    return [_point(asked.params, cell) for asked in study.trials], sweep["trials"]


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise InputError("search=tpe needs Optuna: pip install 'mmjax[hpo]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _study(optuna: Any, cell: space.Cell, sweep: space.Config, workdir: Path) -> Any:
    storage = optuna.storages
    journal = storage.journal.JournalFileBackend(str(workdir / "studies.journal"))
    return optuna.create_study(
        storage=storage.JournalStorage(journal),
        study_name=cell.name,
        direction="maximize",
        load_if_exists=True,
    )


def _distributions(optuna: Any, axes: Mapping[str, space.Axis]) -> dict[str, Any]:
    made = {}
    for name, axis in axes.items():
        if not isinstance(axis, space.Range):  # by their places: values may be of any type
            made[name] = optuna.distributions.CategoricalDistribution(tuple(range(len(axis))))
        elif axis.integer:
            low, high = int(axis.low), int(axis.high)
            made[name] = optuna.distributions.IntDistribution(low, high, log=axis.log)
        else:
            made[name] = optuna.distributions.FloatDistribution(axis.low, axis.high, log=axis.log)
    return made


def _point(params: Mapping[str, Any], cell: space.Cell) -> space.Point:
    """What Optuna suggests as the values of a config, in the axes' order."""
    return {
        name: params[name] if isinstance(axis, space.Range) else axis[params[name]]
        for name, axis in cell.axes.items()
    }
