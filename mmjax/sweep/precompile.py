"""Compile all programs of a sweep before it starts.

They go into the cache that its processes read.
"""

from collections.abc import Iterator, Sequence

from mmjax.core.progress import Progress
from mmjax.parallel import trial_axis
from mmjax.sweep import estimate, space
from mmjax.sweep.batching import Packer
from mmjax.sweep.plan import Plan
from mmjax.training import epochs, evaluator, experiment


def compile_all(plan: Plan, most: int = 0) -> int:
    """Compile the programs of a whole sweep.

    They are those that one process runs if it does the whole sweep: initialisation, an epoch, and
    the evaluations, for every number of trials at a time. Processes that share the work may hold
    smaller packs at its end, and compile those themselves.

    Args:
      most: as of `worker.run`.

    Returns:
      The number of packs.
    """
    packer = Packer(plan.resources, most)
    done: set[tuple[str, ...]] = set()
    tuned, repeated = estimate.phases(plan)
    while True:
        try:
            packs = [*_packs(tuned, packer), *_packs(repeated, packer)]
            with Progress("program", len(packs), unit="program", done=len(done)) as progress:
                for pack in packs:
                    key = tuple(trial.id for trial in pack)
                    if key not in done:
                        _compile(plan, pack, packer)
                        done.add(key)
                        progress.add(1, pack[0].cell)
            return len(done)
        except trial_axis.Unlike:  # the packer now groups the trials differently
            continue


def _packs(trials: Sequence[space.Trial], packer: Packer) -> Iterator[list[space.Trial]]:
    for group in packer.groups(trials):
        size = packer.size(group)
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _compile(plan: Plan, pack: Sequence[space.Trial], packer: Packer) -> None:
    config = pack[0].config
    ensemble, data = packer.build(pack), packer.data(config)
    ensemble.init()
    tasks = experiment.tasks(config, data)
    for width in trial_axis.widths(len(ensemble.keys), ensemble.mesh):
        trials = ensemble if width == len(ensemble.keys) else ensemble.take(range(width))
        evaluate = evaluator.Evaluator(trials, tasks, config, data, {"compile_s": 0.0})
        if trials.trainable:
            epochs.compile_programs(trials, {"compile_s": 0.0})
        for split in tasks:
            evaluate.compile(split)
