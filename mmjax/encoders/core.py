"""What an encoder is to the rest of the house, and how its batches reach the device.

One file a tower, found by its module's name. The file offers

  load(**options) -> Tower | Fitted

whose keyword arguments are the options it understands (`weights`, `revision`, `pooling`, `dtype`,
`width`, …) with their defaults. A **Tower** encodes every item by itself, so its rows stream into
a store; a **Fitted** encoder needs the whole catalogue before it can say what one item is.
"""

import contextlib
import queue
import threading
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


Batches = Callable[[Sequence[str], int], Iterator[Batch]]  # (inputs, B)
Encode = Callable[..., jax.Array]  # (params, *arrays [B, ...]) -> [B, F]
Rows = Iterator[tuple[np.ndarray, np.ndarray]]  # positions [n] and values [n, F], in any order
Run = Callable[[Batches, Encode, Any], Rows]


@dataclass(frozen=True)
class Tower:
    """An encoder with weights: `encode(params, *arrays)` on what `batches` makes of inputs."""

    modality: str  # "image": inputs are paths; "text": inputs are strings
    width: int
    params: Any
    batches: Batches
    encode: Encode
    about: dict[str, Any] = field(default_factory=dict)  # into the manifest


@dataclass(frozen=True)
class Fitted:
    """An encoder fitted on the catalogue: `fit(inputs [n], run)` returns features [n, F].

    `run(batches, encode, params)` is how it uses devices: like `stream` it yields positions in
    the inputs and values. Inputs that cannot be read, or say nothing, get a row of zeros.
    """

    modality: str
    fit: Callable[[Sequence[str], Run], np.ndarray]
    about: dict[str, Any] = field(default_factory=dict)


def stream(
    batches: Iterator[Batch],
    encode: Encode,
    params: Any,
    rows: NamedSharding | None = None,
    on_failure: Callable[[int, str], None] = lambda row, why: None,
) -> Rows:
    """Encodes batches and yields their rows [n] and values [n, F], in the batches' order.

    The host makes batches ahead in a thread, and the device is given the next batch before the
    values of the last are fetched, so neither waits for the other's latency.

    Args:
      rows: how a batch is split over devices; `params` are then copied to all of them. Without
        it everything happens on JAX's default device.
      on_failure: called, in order, for each input that could not be read.
    """
    everywhere = None if rows is None else NamedSharding(rows.mesh, PartitionSpec())
    params = jax.device_put(params, everywhere)
    waiting: tuple[np.ndarray, jax.Array] | None = None
    with contextlib.closing(ahead(batches)) as made:
        for batch in made:
            for row, why in batch.failed.items():
                on_failure(row, why)
            if not len(batch.rows):
                continue
            values = encode(params, *jax.device_put(batch.arrays, rows))
            if waiting is not None:
                yield waiting[0], np.asarray(waiting[1])[: len(waiting[0])]
            waiting = batch.rows, values
    if waiting is not None:
        yield waiting[0], np.asarray(waiting[1])[: len(waiting[0])]


def ahead(source: Iterator[Any], depth: int = 3) -> Iterator[Any]:
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
