"""Several processes that run one program together: joining, who writes, what all must agree on.

Each process runs the same script and holds some of the devices; arrays are global. Whatever asks
other processes here must be called by all of them, in the same order.
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
from jax._src import distributed  # whose store has no public name
from jax.experimental import multihost_utils

from mmjax.core.errors import InputError, Preempted
from mmjax.parallel.heartbeat import Heartbeat

GATHERED = "mmjax/gathered/"  # in the key-value store of jax.distributed
ENDING = "mmjax/ending/"
LONGEST = 30 * 24 * 3600 * 1000  # ms to wait for a process that lives; `Heartbeat` sees if it does
_turns = itertools.count()  # of `all_gather`, which all processes call equally often
LOST = 76  # exit status of a process whose others died or hang
Result = TypeVar("Result")

# What says that a launcher started several tasks, and how many: Open MPI, SLURM's srun.
SIZES = ("OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
SLICES = ("TPU_WORKER_HOSTNAMES", "MEGASCALE_COORDINATOR_ADDRESS")  # Cloud TPU and GKE


def launched() -> bool:
    """Whether this process is one of several that a launcher known to JAX has started."""
    if any(int(os.environ.get(name) or 1) > 1 for name in SIZES):
        return True
    return "," in os.environ.get(SLICES[0], "") or SLICES[1] in os.environ


def open_mpi() -> dict[str, Any]:
    """What `jax.distributed.initialize` needs under Open MPI 5, whose head JAX does not find.

    The namespace names the host that mpirun runs on, where process 0 must be, and its process id.
    """
    found = re.fullmatch(r"prte\w*-(.+)-(\d+)@\d+", os.environ.get("PMIX_NAMESPACE", ""))
    if not found or "OMPI_COMM_WORLD_SIZE" not in os.environ:
        return {}
    count, index, near, local = (
        int(os.environ[f"OMPI_COMM_WORLD_{name}"])
        for name in ("SIZE", "RANK", "LOCAL_SIZE", "LOCAL_RANK")
    )
    host = "127.0.0.1" if near == count else found[1]
    where = f"{host}:{61440 + int(found[2]) % 4096}"
    own = {"local_device_ids": [local]} if near > 1 else {}  # a process for each accelerator
    return {"coordinator_address": where, "num_processes": count, "process_id": index, **own}


def join(
    coordinator: str = "",
    count: int = 0,
    index: int = -1,
    *,
    seconds: int = 120,
    beat: int = 20,
) -> None:
    """Joins the others; to be called before anything asks for a device.

    Args:
      coordinator: HOST:PORT of process 0. Without it JAX asks the cluster (SLURM, Open MPI, GKE,
        Cloud TPU) for all three.
      seconds: how long to wait for the others.
      beat: after how many seconds of silence a process counts as dead, which ends all (`abort`).

    When they do not come, one sentence is printed and this process ends with status 2: JAX itself
    would abort it.

    Raises:
      InputError: the three contradict, or JAX knows no such cluster.
    """
    if coordinator and not (count >= 1 and 0 <= index < count):
        raise InputError(
            f"process {index} of {count} at {coordinator}: give the number of processes and this "
            "one's, which counts from 0"
        )
    given = {"coordinator_address": coordinator, "num_processes": count, "process_id": index}
    given = given if coordinator else open_mpi()
    where = f"at {given['coordinator_address']}" if given else "that the cluster names"

    def give_up() -> None:
        text = f"the processes {where} did not come together within {seconds} s; were all started, "
        print(f"error: {text}and is the coordinator's port open?", file=sys.stderr, flush=True)
        os._exit(2)

    late = threading.Timer(seconds, give_up)
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=seconds + 60,
            heartbeat_timeout_seconds=3 * beat,
            shutdown_timeout_seconds=beat,
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the processes {where} cannot join: {str(error)[:200]}") from None
    finally:
        late.cancel()
    if jax.process_count() > 1:
        client = distributed.global_state.client
        heart = Heartbeat(client, jax.process_index(), jax.process_count(), beat, abort)
        heart.start()
        atexit.register(shut_down, heart)


def shut_down(heart: Heartbeat) -> None:
    """End in peace: wait for the others, as they still hear this process, then fall silent."""
    heart.leave()
    try:
        jax.distributed.shutdown()
    finally:
        heart.stop()


def abort(about: str) -> None:
    """Says that another process is lost and ends this one, without JAX's farewell, which would wait
    for it."""
    print(
        f"error: another process died or hangs; the same command goes on from the last "
        f"checkpoint ({about})",
        file=sys.stderr,
        flush=True,
    )
    os._exit(LOST)


def is_primary() -> bool:
    """Whether this is the process that writes and speaks."""
    return jax.process_index() == 0


def all_gather(value: Any) -> list[Any]:
    """The JSON value of each process, in their order."""
    if jax.process_count() == 1:
        return [value]
    # Not by a collective: those give up after half a minute, and a share may be hours longer.
    client, turn, own = distributed.global_state.client, next(_turns), jax.process_index()
    client.key_value_set(f"{GATHERED}{turn}/{own}", json.dumps(value))
    client.wait_at_barrier(f"{GATHERED}{turn}", LONGEST)
    if turn:  # all have read what was before this
        client.key_value_delete(f"{GATHERED}{turn - 1}/{own}")
    places = [f"{GATHERED}{turn}/{index}" for index in range(jax.process_count())]
    return [json.loads(client.key_value_try_get(place)) for place in places]


def barrier() -> None:
    """Returns when all processes have come here."""
    all_gather(None)


def all_true(fact: bool) -> bool:
    """Whether it holds in all processes."""
    return all(all_gather(bool(fact)))


def agree(facts: Mapping[str, Any]) -> None:
    """Checks that all processes have the same facts, JSON values by name.

    Raises:
      InputError: in all of them; it names a fact and the processes that differ.
    """
    every = all_gather(dict(facts))
    for index, theirs in enumerate(every):
        for name in sorted(every[0].keys() | theirs.keys()):
            if every[0].get(name) != theirs.get(name):
                raise InputError(
                    f"process {index} was started with other settings than process 0: {name} is "
                    f"{theirs.get(name)!r} there and {every[0].get(name)!r} here; start all with "
                    "one command, on the same code and data"
                )


def run_on_all(step: Callable[[], Result]) -> Result:
    """What `step` gives here, once it has ended in all processes.

    Raises:
      InputError: in all of them, what it raised in one.
      Preempted: in all of them, if it was raised in one and nothing else was.
    """
    value, error = None, None
    try:
        value = step()
    except (InputError, Preempted) as raised:
        error = raised
    every = all_gather(None if error is None else [isinstance(error, InputError), str(error)])
    if isinstance(error, InputError):
        raise error
    stopped = [(index, *told) for index, told in enumerate(every) if told is not None]
    for index, fault, text in stopped:
        if fault:
            raise InputError(f"process {index} of {len(every)} stopped: {text}")
    for _, _, text in stopped:
        raise Preempted(text)
    return value


def run_on_primary(step: Callable[[], Result]) -> Result | None:
    """What `step` gives in the first process, and None in the others, once it has ended there.

    Raises:
      InputError: in all of them, what it raised in the first.
    """
    return run_on_all(lambda: step() if is_primary() else None)


def broadcast_flag(fact: bool) -> bool:
    """Whether it holds in the first process, which decides for all."""
    return all_gather(bool(fact))[0]


class Notice:
    """Whether these processes were asked to end (SIGTERM, a cloud's preemption); a context manager.

    JAX passes what one process is told on to all, and names a step that none of them has passed.
    With `own` each may ask when it likes, and hears of the others' notices in the key-value store.
    """

    def __init__(self, *, own: bool = False) -> None:
        self._given, self._asked = False, 0
        self._several = jax.process_count() > 1
        self._own, self._listens = own or not self._several, False
        self._before: Any = None

    def __enter__(self) -> "Notice":
        main = threading.current_thread() is threading.main_thread()
        if self._own and main:  # else JAX listens
            self._before, self._listens = signal.signal(signal.SIGTERM, self._note), True
        return self

    def __exit__(self, *_: Any) -> None:
        if self._listens:  # None is JAX's own, which Python cannot put back
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)

    def _note(self, *_: Any) -> None:
        self._given = True

    def given(self) -> bool:
        """Whether to save and end now; all processes ask equally often, unless it is `own`."""
        if self._own and self._several:
            client = distributed.global_state.client
            if self._given:
                client.key_value_set(f"{ENDING}now", "", True)
            return self._given or bool(client.key_value_dir_get(ENDING))
        if self._own:
            return self._given
        # JAX counts from 1: a notice from before the first question is for that one.
        self._asked += 1
        return multihost_utils.reached_preemption_sync_point(self._asked)
