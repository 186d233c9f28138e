"""Main loop of a sweep: train packs and read test splits.

Each turn looks at what is left, then trains a pack of it or reads a test split. The loop's state
lies in the workdir, so a killed sweep goes on with the same command, and several processes or hosts
share one workdir:

    sweep.json          the config, and the hashes of its datasets
    ledger.jsonl        finished work (`ledger`); leases/ has the work in progress (`leases`)
    packs/ID/           trials that train as one program: members, checkpoints, metrics.jsonl
    weights/TRIAL/      the best weights of a pack's best trials, until they are tested
    runs/TRIAL/         of every trial that was tested, what train.py writes of a run
    studies.journal     TPE's

Training a trial never sees the test split: only `final_test.read_test` does, for chosen points.
"""

import hashlib
import math
import shutil
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mmjax.core import files
from mmjax.core.progress import Progress
from mmjax.parallel import trial_axis
from mmjax.sweep import final_test, space
from mmjax.sweep.batching import Packer
from mmjax.sweep.leases import Leases
from mmjax.sweep.ledger import Ledger
from mmjax.sweep.plan import Plan, claim, event, survey
from mmjax.training import evaluator, experiment, fit
from mmjax.training.checkpoint import Checkpoints


def run(plan: Plan, *, most: int = 0, retry_failed: bool = False, expiry: float = 300.0) -> None:
    """Work until the sweep is done.

    Args:
      most: trials of a program at a time; 0 for as many as memory holds.
      retry_failed: trains failed trials once more.
      expiry: seconds after which an abandoned lease of another process may be taken over.

    Raises:
      InputError: the workdir is another sweep's or its data changed, or it cannot be written.
    """
    claim(plan)
    ledger = Ledger(plan.workdir)
    retried = set(ledger.failed) if retry_failed else set()
    leases = Leases(plan.workdir / "leases", ledger.locked, expiry)
    left, packer, waiting = survey(plan, ledger, retried), Packer(plan.resources, most), False
    with Progress("trial", left.trials, unit="trial", done=left.done) as progress:
        while left.train or left.test:
            try:
                pack = _next_pack(plan, left.train, packer, ledger, leases)
                if pack:
                    with leases.kept([trial.id for trial in pack]):
                        _train(plan, pack, packer, ledger, leases)
                        retried -= {trial.id for trial in pack}
                worked = pack or final_test.test(plan, left.test, packer, ledger, leases)
            except trial_axis.Unlike:  # the packer now groups the trials differently
                continue
            if not worked:
                if not waiting:
                    print("waiting for what other processes are doing", flush=True)
                time.sleep(min(5.0, expiry / 4))
            waiting = not worked
            ledger.refresh()
            left = survey(plan, ledger, retried)
            progress.total = left.trials
            progress.add(left.done - progress.done)
    for folder in plan.workdir.glob("weights/*"):  # of trials that were only best of a pack
        if folder.name not in ledger.tested:
            shutil.rmtree(folder, ignore_errors=True)


def _next_pack(
    plan: Plan,
    undone: Sequence[space.Trial],
    packer: Packer,
    ledger: Ledger,
    leases: Leases,
) -> list[space.Trial]:
    """Lease the next trials that share one program.

    A pack that a kill left behind comes first, and as a whole, so that it goes on from its
    checkpoint. The result is empty if other processes hold all trials.
    """
    by_id, groups = {trial.id: trial for trial in undone}, packer.groups(undone)
    for folder in sorted(plan.workdir.glob("packs/*/checkpoints")):
        members = files.read_json(folder.parent / "members.json")
        if any(set(members) <= {trial.id for trial in group} for group in groups):
            mine = _taken(members, len(members), ledger, leases)
            if len(mine) == len(members):
                return [by_id[name] for name in members]
            leases.release(mine)
    for group in groups:
        mine = _taken([trial.id for trial in group], packer.size(group), ledger, leases)
        if mine:
            return [by_id[name] for name in mine]
    return []


def _taken(names: Sequence[str], most: int, ledger: Ledger, leases: Leases) -> list[str]:
    """Lease at most `most` of the names.

    Names that another process settled and gave back since the ledger was last read are left out.
    """
    before = ledger.done.keys() | ledger.failed.keys()
    taken = leases.take(names, most)
    ledger.refresh()
    settled = (ledger.done.keys() | ledger.failed.keys()) - before
    leases.release([name for name in taken if name in settled])
    return [name for name in taken if name not in settled]


def _train(
    plan: Plan, pack: Sequence[space.Trial], packer: Packer, ledger: Ledger, leases: Leases
) -> None:
    """Train a pack and append its results to the ledger.

    An error that its config causes is appended instead.

    Raises:
      trial_axis.Unlike: as `Packer.build`.
    """
    names = [trial.id for trial in pack]
    identity = hashlib.sha256(" ".join(names).encode()).hexdigest()[:12]
    folder = plan.workdir / "packs" / identity
    files.write_json(folder / "members.json", names)
    print(f"{pack[0].cell}: {len(pack)} trials as one program", flush=True)
    begin = time.perf_counter()
    config, timing = pack[0].config, {"compile_s": 0.0}
    checkpoints = Checkpoints(folder / "checkpoints")
    try:
        trials, data = packer.build(pack), packer.data(config)
        tasks = experiment.tasks(config, data, ("valid",))
        evaluate = evaluator.Evaluator(trials, tasks, config, data, timing)
        best, progress = fit.fit(
            trials, trials.init(), evaluate, checkpoints, config, folder, timing
        )
        if not trials.trainable:
            rankings = evaluate(best, "valid", lists=False)
            progress["best"] = [evaluate.select(ranking) for ranking in rankings]
    except trial_axis.Unlike:
        shutil.rmtree(folder)
        raise
    except (ValueError, TypeError, jax.errors.JaxRuntimeError) as error:
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}"
        print(f"{pack[0].cell}: failed, {reason}", flush=True)
        ledger.append(event("failed", trial) | {"error": reason} for trial in pack)
        return
    finally:
        checkpoints.close()
    seconds = fit.summary(timing, begin)
    events = []
    for index, trial in enumerate(pack):
        value, diverged = progress["best"][index], progress["diverged"][index]
        if value is None:
            events.append(event("failed", trial) | {"error": f"diverged in epoch {diverged}"})
            continue
        events.append(
            event("done", trial)
            | {"valid": value, "best_epoch": progress["best_epoch"][index]}
            | {"epochs": progress["epoch"], "diverged": diverged}
            | {"pack": identity, "place": index, "of": len(pack), "timing": seconds}
        )
    for index in _worth_keeping(pack, progress["best"][: len(pack)], ledger):
        kept = jax.tree.map(lambda x, index=index: jnp.copy(x[index : index + 1]), best)
        weights = Checkpoints(plan.workdir / "weights" / pack[index].id)
        weights.save(0, kept, {})
        weights.close()
    # If a lease is lost, another process took over and trains the same.
    if all(leases.mine(name) for name in names):
        ledger.append(events)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _worth_keeping(
    pack: Sequence[space.Trial], values: Sequence[float | None], ledger: Ledger
) -> list[int]:
    """Return indices of the trials that may be tested.

    They are the best of each cell in the pack, and repeats of a choice.
    """
    indices = []
    for index, trial in enumerate(pack):
        if values[index] is None:
            continue
        rivals = {n: values[n] for n, rival in enumerate(pack) if rival.cell == trial.cell}
        known = {n: -math.inf if value is None else value for n, value in rivals.items()}
        best = max(known, key=known.__getitem__)
        if index == best or ledger.chosen.get(trial.cell, {}).get("point") == trial.point:
            indices.append(index)
    return indices
