"""Choose the points that a cell tries: grid, random or TPE.

A grid and random draws are known before anything is trained. TPE, by Optuna, learns from finished
trials: it asks for a batch, which trains as one program, and gets all its values before it asks for
the next. Its study lies in a file in the workdir (`studies.journal`). A point that was asked for
stays there until its value is known, so a kill loses none and hosts that share the folder share the
study.
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
    """Return the known points of a cell and their final number.

    Args:
      trial_of: returns the id of a point's trial.
    """
    if not cell.axes:
        return [{}], 1
    if cell.search == "grid":
        return (all_points := space.grid(cell)), len(all_points)
    if cell.search == "random":
        return space.drawn(cell, sweep["trials"], sweep["search_seed"]), sweep["trials"]
    with ledger.locked():
        return _tpe(cell, sweep, workdir, ledger, trial_of)


def _tpe(
    cell: space.Cell, sweep: space.Config, workdir: Path, ledger: Ledger, trial_of: Any
) -> tuple[list[space.Point], int]:
    """Report finished points to the study and ask for more.

    The next batch is asked for once all points before it are reported.
    """
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
        # A new seed for each batch: a resumed process would else draw its first points again.
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
    distributions = {}
    for name, axis in axes.items():
        if not isinstance(axis, space.Range):  # by index: values may be of any type
            distributions[name] = optuna.distributions.CategoricalDistribution(
                tuple(range(len(axis)))
            )
        elif axis.integer:
            low, high = int(axis.low), int(axis.high)
            distributions[name] = optuna.distributions.IntDistribution(low, high, log=axis.log)
        else:
            distributions[name] = optuna.distributions.FloatDistribution(
                axis.low, axis.high, log=axis.log
            )
    return distributions


def _point(params: Mapping[str, Any], cell: space.Cell) -> space.Point:
    """Return Optuna's suggestion as config values, in the axes' order."""
    return {
        name: params[name] if isinstance(axis, space.Range) else axis[params[name]]
        for name, axis in cell.axes.items()
    }
