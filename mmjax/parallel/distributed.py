"""Coordinate several processes that run one program.

The module covers joining, the choice of the process that writes, and agreement between processes.
Each process runs the same script and holds some of the devices; arrays are global. All processes
must call the functions that communicate, and in the same order.
"""

import atexit
import itertools
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
from jax._src import distributed  # its key-value store has no public name
from jax.experimental import multihost_utils

from mmjax.core.errors import InputError, Preempted
from mmjax.parallel.heartbeat import Heartbeat

GATHERED = "mmjax/gathered/"  # in the key-value store of jax.distributed
ENDING = "mmjax/ending/"
LONGEST = 30 * 24 * 3600 * 1000  # ms to wait for a live process; `Heartbeat` detects dead ones
_turns = itertools.count()  # number of each `all_gather` call; equal in all processes
LOST = 76  # exit status if another process died or hangs
Result = TypeVar("Result")

# Variables with the number of tasks that a launcher started: Open MPI, SLURM's srun.
SIZES = ("OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
SLICES = ("TPU_WORKER_HOSTNAMES", "MEGASCALE_COORDINATOR_ADDRESS")  # Cloud TPU and GKE


def launched() -> bool:
    """Return whether a launcher started several processes.

    Only launchers known to JAX are considered.
    """
    if any(int(os.environ.get(name) or 1) > 1 for name in SIZES):
        return True
    return "," in os.environ.get(SLICES[0], "") or SLICES[1] in os.environ


def open_mpi() -> dict[str, Any]:
    """Return the arguments of `jax.distributed.initialize` under Open MPI 5.

    JAX does not find the coordinator of Open MPI 5. The PMIx namespace names the host that mpirun
    runs on, where process 0 must be, and mpirun's process id.

    Returns:
      Keyword arguments; empty where Open MPI 5 did not start this process.
    """
    match = re.fullmatch(r"prte\w*-(.+)-(\d+)@\d+", os.environ.get("PMIX_NAMESPACE", ""))
    if not match or "OMPI_COMM_WORLD_SIZE" not in os.environ:
        return {}
    count, index, near, local = (
        int(os.environ[f"OMPI_COMM_WORLD_{name}"])
        for name in ("SIZE", "RANK", "LOCAL_SIZE", "LOCAL_RANK")
    )
    host = "127.0.0.1" if near == count else match[1]
    address = f"{host}:{61440 + int(match[2]) % 4096}"
    devices = {"local_device_ids": [local]} if near > 1 else {}  # a process for each accelerator
    return {"coordinator_address": address, "num_processes": count, "process_id": index, **devices}


def join(
    coordinator: str = "",
    count: int = 0,
    index: int = -1,
    *,
    seconds: int = 120,
    beat: int = 20,
) -> None:
    """Join the other processes, before any use of a device.

    If the others do not come in time, one sentence is printed and this process ends with status 2;
    JAX itself would abort it.

    Args:
      coordinator: HOST:PORT of process 0. Without it JAX asks the cluster (SLURM, Open MPI, GKE,
        Cloud TPU) for all three values.
      count: number of processes.
      index: number of this process, from 0.
      seconds: time to wait for the others.
      beat: seconds of silence after which a process counts as dead, which ends all (`abort`).

    Raises:
      InputError: the three values contradict each other, or JAX knows no such cluster.
    """
    if coordinator and not (count >= 1 and 0 <= index < count):
        raise InputError(
            f"process {index} of {count} at {coordinator}: give the number of processes and this "
            "one's, which counts from 0"
        )
    given = {"coordinator_address": coordinator, "num_processes": count, "process_id": index}
    options: dict[str, Any] = given if coordinator else open_mpi()
    where = f"at {options['coordinator_address']}" if options else "that the cluster names"

    def give_up() -> None:
        text = f"the processes {where} did not come together within {seconds} s; were all started, "
        print(f"error: {text}and is the coordinator's port open?", file=sys.stderr, flush=True)
        os._exit(2)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            **options,
            initialization_timeout=seconds + 60,
            heartbeat_timeout_seconds=3 * beat,
            shutdown_timeout_seconds=beat,
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the processes {where} cannot join: {str(error)[:200]}") from None
    finally:
        timer.cancel()
    if jax.process_count() > 1:
        client = distributed.global_state.client
        heart = Heartbeat(client, jax.process_index(), jax.process_count(), beat, abort)
        heart.start()
        atexit.register(shut_down, heart)


def shut_down(heart: Heartbeat) -> None:
    """Shut down in step with the other processes.

    Wait for the others while they still receive this process's heartbeat, then stop the heartbeat.
    """
    heart.leave()
    try:
        jax.distributed.shutdown()
    finally:
        heart.stop()


def abort(about: str) -> None:
    """End this process because another one is lost.

    An error line is printed first. JAX's own shutdown is skipped, since it would wait for the lost
    process. The exit status is `LOST`.
    """
    print(
        f"error: another process died or hangs; the same command goes on from the last "
        f"checkpoint ({about})",
        file=sys.stderr,
        flush=True,
    )
    os._exit(LOST)


def is_primary() -> bool:
    """Return whether this is the process that writes and prints."""
    return jax.process_index() == 0


def all_gather(value: Any) -> list[Any]:
    """Return the JSON value of each process, in process order."""
    if jax.process_count() == 1:
        return [value]
    # Not by a collective: those time out after half a minute, and the work of one process may take
    # hours longer than that of another.
    client: Any = distributed.global_state.client
    turn, rank = next(_turns), jax.process_index()
    client.key_value_set(f"{GATHERED}{turn}/{rank}", json.dumps(value))
    client.wait_at_barrier(f"{GATHERED}{turn}", LONGEST)
    if turn:  # all have read the values of the previous call
        client.key_value_delete(f"{GATHERED}{turn - 1}/{rank}")
    keys = [f"{GATHERED}{turn}/{index}" for index in range(jax.process_count())]
    return [json.loads(client.key_value_try_get(key)) for key in keys]


def barrier() -> None:
    """Wait until all processes have called this."""
    all_gather(None)


def all_true(fact: bool) -> bool:
    """Return whether `fact` holds in all processes."""
    return all(all_gather(bool(fact)))


def agree(facts: Mapping[str, Any]) -> None:
    """Check that all processes have the same facts.

    Args:
      facts: JSON values by name.

    Raises:
      InputError: in all processes; it names a fact and a process that differs from process 0.
    """
    values = all_gather(dict(facts))
    for index, theirs in enumerate(values):
        for name in sorted(values[0].keys() | theirs.keys()):
            if values[0].get(name) != theirs.get(name):
                raise InputError(
                    f"process {index} was started with other settings than process 0: {name} is "
                    f"{theirs.get(name)!r} there and {values[0].get(name)!r} here; start all with "
                    "one command, on the same code and data"
                )


def run_on_all(step: Callable[[], Result]) -> Result:
    """Run `step` here and wait for all processes.

    Returns:
      The result of `step` in this process.

    Raises:
      InputError: in all processes, if `step` raised it in one.
      Preempted: in all processes, if `step` raised it in one and nothing else was raised.
    """
    value: Any = None
    error: Exception | None = None
    try:
        value = step()
    except (InputError, Preempted) as raised:
        error = raised
    outcomes = all_gather(None if error is None else [isinstance(error, InputError), str(error)])
    if isinstance(error, InputError):
        raise error
    stopped = [(index, *outcome) for index, outcome in enumerate(outcomes) if outcome is not None]
    for index, fault, text in stopped:
        if fault:
            raise InputError(f"process {index} of {len(outcomes)} stopped: {text}")
    for _, _, text in stopped:
        raise Preempted(text)
    return value


def run_on_primary(step: Callable[[], Result]) -> Result | None:
    """Run `step` in the first process; all processes wait for it.

    Returns:
      The result of `step` in the first process, None in the others.

    Raises:
      InputError: in all processes, if `step` raised it in the first.
    """
    return run_on_all(lambda: step() if is_primary() else None)


def broadcast_flag(fact: bool) -> bool:
    """Return the flag of the first process in all processes."""
    return all_gather(bool(fact))[0]


class Notice:
    """Context manager that receives requests to end, such as SIGTERM.

    A cloud's preemption is such a request. JAX passes the notice of one process on to all and names
    a step that no process has passed. With `own` each process may ask at any time, and it reads the
    notices of the others in the key-value store.
    """

    def __init__(self, *, own: bool = False) -> None:
        self._given, self._asked = False, 0
        self._several = jax.process_count() > 1
        self._own, self._listens = own or not self._several, False
        self._before: Any = None

    def __enter__(self) -> "Notice":
        main = threading.current_thread() is threading.main_thread()
        if self._own and main:  # otherwise JAX handles the signal
            self._before, self._listens = signal.signal(signal.SIGTERM, self._note), True
        return self

    def __exit__(self, *_: Any) -> None:
        if self._listens:  # None means JAX's own handler, which Python cannot restore
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)

    def _note(self, *_: Any) -> None:
        self._given = True

    def given(self) -> bool:
        """Return whether to save and end now.

        All processes must ask equally often, unless the notice is `own`.
        """
        if self._own and self._several:
            client: Any = distributed.global_state.client
            if self._given:
                client.key_value_set(f"{ENDING}now", "", True)
            return self._given or bool(client.key_value_dir_get(ENDING))
        if self._own:
            return self._given
        # JAX counts from 1: a notice that came before the first call belongs to that call.
        self._asked += 1
        return multihost_utils.reached_preemption_sync_point(self._asked)
