"""Define the encoder interface and stream batches to the device.

Each tower is one file, found by its module's name. The file offers

  load(**options) -> Tower | Fitted

whose keyword arguments are the options it understands (`weights`, `revision`, `layers`, `dtype`,
`width`, …) with their defaults. An argument whose default is a dataclass stands for that
dataclass's fields. A **Tower** encodes each item independently, so its rows stream into stores. A
**Fitted** encoder needs the whole catalogue before it can encode one item.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


class Batch(NamedTuple):
    """Host arrays of one device call, padded to batch size B."""

    rows: np.ndarray  # [n <= B] indices into the inputs; array rows from n on are padding
    arrays: tuple[Any, ...]  # [B, ...] each
    failed: dict[int, str] = {}  # input index -> why it could not be read  # noqa: RUF012
    cut: int = 0  # inputs truncated to the encoder's window; only their beginning is read
    begins: bool = False  # starts a group of rows whose values must not depend on earlier batches


Batches = Callable[[Sequence[Any], int], Iterator[Batch]]  # (inputs, B)
Encode = Callable[..., Any]  # (params, *arrays [B, ...]) -> [B, F], or a tuple of such
Rows = Iterator[tuple[np.ndarray, Any]]  # input indices [n] and values [n, F], in any order
Run = Callable[[Batches, Encode, Any], Rows]


@dataclass(frozen=True)
class Tower:
    """Encoder with weights that encodes each item independently.

    `batches` turns inputs into arrays; `encode(params, *arrays)` returns one array [B, F] for each
    of `layers`, all from one pass.
    """

    modality: str  # "image", "audio": inputs are paths; "text": strings; "image_text": pairs
    layers: dict[str, int]  # NAME or NAME:POOLING -> width, in the order of the request
    params: Any
    batches: Batches
    encode: Encode
    about: dict[str, Any] = field(default_factory=dict)  # written to the manifest
    # Replaces `stream` below where set; it may yield rows in any order. If `speaks`, the tower
    # generates text and its values end with an array [n] of answers.
    stream: Callable[..., Rows] | None = None
    speaks: bool = False


@dataclass(frozen=True)
class Fitted:
    """Encoder fitted on the whole catalogue.

    `fit(inputs [n], run)` returns features [n, F]. It uses devices through
    `run(batches, encode, params)`, which like `stream` yields input indices and values. Inputs that
    cannot be read, or are empty, get a row of zeros.
    """

    modality: str
    fit: Callable[[Sequence[Any], Run], np.ndarray]
    about: dict[str, Any] = field(default_factory=dict)


@dataclass
class Clock:
    """Timer of the seconds a stream waits for host batches.

    It shows whether the host or the device is the slower side.
    """

    waited: float = 0.0

    def next(self, made: Iterator[Any]) -> Any:
        """Return the next host batch, or None after the last."""
        begin = time.perf_counter()
        batch = next(made, None)
        self.waited += time.perf_counter() - begin
        return batch


def stream(
    batches: Iterator[Batch],
    encode: Encode,
    params: Any,
    rows: NamedSharding | None = None,
    on_batch: Callable[[Batch], None] = lambda batch: None,
    clock: Clock | None = None,
) -> Rows:
    """Encode batches and yield their rows and values in order.

    A thread prefetches host batches, and the device gets the next batch before the values of the
    previous one are fetched. So neither side waits for the other's latency.

    Args:
      batches: host batches.
      encode: the device program.
      params: arrays already on devices, or host arrays to replicate to every device of `rows`.
      rows: sharding of a batch over devices; without it JAX's default device does all the work.
      on_batch: called in order with each batch before it is encoded, to report failed inputs.
      clock: counts the seconds spent waiting for host batches.

    Yields:
      Input indices [n] and values [n, F].
    """
    params = place(params, rows)
    waiting: tuple[np.ndarray, Any] | None = None
    clock = clock or Clock()

    def fetch(count: int, values: Any) -> Any:
        return jax.tree.map(lambda value: np.asarray(value)[:count], values)

    with contextlib.closing(prefetch(batches)) as prefetched:
        while True:
            batch = clock.next(prefetched)
            if batch is None:
                break
            on_batch(batch)
            if not len(batch.rows):
                continue
            values = encode(params, *jax.device_put(batch.arrays, rows))
            if waiting is not None:
                yield waiting[0], fetch(len(waiting[0]), waiting[1])
            waiting = batch.rows, values
    if waiting is not None:
        yield waiting[0], fetch(len(waiting[0]), waiting[1])


def place(params: Any, rows: NamedSharding | None) -> Any:
    """Replicate host arrays to every device of a batch's sharding.

    Arrays already on devices stay as they are.
    """
    replicated = None if rows is None else NamedSharding(rows.mesh, PartitionSpec())

    def put(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array):
            return leaf
        placed = jax.device_put(np.asarray(leaf), replicated)
        then = getattr(leaf, "then", None)  # `weights.Stored.then` transforms the placed array
        return placed if then is None else then(placed)

    return jax.tree.map(put, params)


def prefetch(source: Iterator[Any], depth: int = 3) -> Generator[Any, None, None]:
    """Iterate over `source` in a background thread.

    The thread queues up to `depth` elements and holds one more. An exception of the source is
    raised where its element would have been. Closing the returned generator stops the thread.
    """
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
    closed = threading.Event()

    def offer(more: bool, value: Any) -> bool:
        while not closed.is_set():
            with contextlib.suppress(queue.Full):
                ready.put((more, value), timeout=0.1)
                return True
        return False

    def work() -> None:
        try:
            for value in source:
                if not offer(True, value):
                    return
            offer(False, None)
        except BaseException as error:  # re-raised in the caller's thread
            offer(False, error)

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            more, value = ready.get()
            if more:
                yield value
            elif value is None:
                return
            else:
                raise value
    finally:
        closed.set()
        thread.join()


def pad_to(array: np.ndarray, size: int) -> np.ndarray:
    """Pad [n, ...] with zeros to [size, ...].

    Batches of equal shape run the same compiled program.
    """
    return np.pad(array, [(0, size - len(array))] + [(0, 0)] * (array.ndim - 1))
