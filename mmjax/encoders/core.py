"""What an encoder is to the rest of the house, and how its batches reach the device.

One file a tower, found by its module's name. The file offers

  load(**options) -> Tower | Fitted

whose keyword arguments are the options it understands (`weights`, `revision`, `layers`, `dtype`,
`width`, …) with their defaults; one whose default is a dataclass stands for that dataclass's
fields. A **Tower** encodes every item by itself, so its rows stream into stores; a **Fitted**
encoder needs the whole catalogue before it can say what one item is.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


class Batch(NamedTuple):
    """Host arrays of one call of the device program, padded to the batch size B."""

    rows: np.ndarray  # [n <= B] positions in the inputs; what follows n is padding
    arrays: tuple[np.ndarray, ...]  # [B, ...] each
    failed: dict[int, str] = {}  # position -> why this input could not be read  # noqa: RUF012
    cut: int = 0  # inputs longer than the encoder's window, of which only the beginning is read
    begins: bool = False  # a group of rows whose values must not depend on what was before them


Batches = Callable[[Sequence[Any], int], Iterator[Batch]]  # (inputs, B)
Encode = Callable[..., Any]  # (params, *arrays [B, ...]) -> [B, F], or a tuple of such
Rows = Iterator[tuple[np.ndarray, Any]]  # positions [n] and values [n, F], in any order
Run = Callable[[Batches, Encode, Any], Rows]


@dataclass(frozen=True)
class Tower:
    """An encoder with weights: `encode(params, *arrays)` on what `batches` makes of inputs.

    `encode` gives one array [B, F] for each of `layers`, all from one pass.
    """

    modality: str  # "image", "audio": inputs are paths; "text": strings; "image_text": pairs
    layers: dict[str, int]  # name, as NAME or NAME:POOLING -> width, in the order asked for
    params: Any
    batches: Batches
    encode: Encode
    about: dict[str, Any] = field(default_factory=dict)  # into the manifest
    # How batches go through the device: as `stream` below, in whatever order their rows end. One
    # that speaks also says what it said: its values end with an array [n] of answers.
    stream: Callable[..., Rows] | None = None
    speaks: bool = False


@dataclass(frozen=True)
class Fitted:
    """An encoder fitted on the catalogue: `fit(inputs [n], run)` returns features [n, F].

    `run(batches, encode, params)` is how it uses devices: like `stream` it yields positions in
    the inputs and values. Inputs that cannot be read, or say nothing, get a row of zeros.
    """

    modality: str
    fit: Callable[[Sequence[Any], Run], np.ndarray]
    about: dict[str, Any] = field(default_factory=dict)


@dataclass
class Clock:
    """Seconds that a stream waited for the host's batches, to say which side is the slower."""

    waited: float = 0.0

    def next(self, made: Iterator[Any]) -> Any:
        """The next of the host's batches, None behind the last."""
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
    """Encodes batches and yields their rows [n] and values [n, F], in the batches' order.

    The host makes batches ahead in a thread, and the device is given the next batch before the
    values of the last are fetched, so neither waits for the other's latency.

    Args:
      params: placed already, or host arrays to be copied to every device of `rows`.
      rows: how a batch is split over devices. Without it everything happens on JAX's default
        device.
      on_batch: called, in order, with each batch before it is encoded: for what it says failed.
    """
    params = place(params, rows)
    waiting: tuple[np.ndarray, Any] | None = None
    clock = clock or Clock()

    def fetch(count: int, values: Any) -> Any:
        return jax.tree.map(lambda value: np.asarray(value)[:count], values)

    with contextlib.closing(prefetch(batches)) as made:
        while True:
            batch = clock.next(made)
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
    """Copies host arrays to every device of a batch's sharding; placed ones stay as they are."""
    everywhere = None if rows is None else NamedSharding(rows.mesh, PartitionSpec())

    def put(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array):
            return leaf
        placed = jax.device_put(np.asarray(leaf), everywhere)
        then = getattr(leaf, "then", None)  # of `weights.Stored`
        return placed if then is None else then(placed)

    return jax.tree.map(put, params)


def prefetch(source: Iterator[Any], depth: int = 3) -> Iterator[Any]:
    """Iterates over `source` in a thread that stays up to `depth` elements ahead.

    An exception of the source is raised where its element would have been; closing the returned
    generator stops the thread.
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
        except BaseException as error:  # handed over: it is raised in the caller's thread
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
    """[n, ...] padded with zeros to [size, ...], so that every batch runs the same program."""
    return np.pad(array, [(0, size - len(array))] + [(0, 0)] * (array.ndim - 1))
