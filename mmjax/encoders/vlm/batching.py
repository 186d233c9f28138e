"""The host's side of generation: rows in, answers out, places refilled as they become free."""

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.encoders.core import Batch, Clock, Encode, Rows, place, prefetch
from mmjax.encoders.vlm.decoder import Past
from mmjax.encoders.vlm.generation import Prepared, Programs, Ready, Slots
from mmjax.encoders.vlm.lvlm import bucket


class Answer(NamedTuple):
    """What the model said."""

    text: str
    tokens: int  # the end token not counted
    ended: bool  # by itself; else it was cut


def stream(
    steps: Programs,
    speak: Callable[[np.ndarray], str],
    pooling: str,
    batches: Iterator[Batch],
    encode: Encode,
    params: Any,
    rows: NamedSharding | None = None,
    on_batch: Callable[[Batch], None] = lambda batch: None,
    clock: Clock | None = None,
) -> Rows:
    """As `core.stream`, with the answers: rows [n] in the order they end, and what they gave.

    That is an array [n, D] for each layer, and last the answers [n], objects of `Answer`.

    Args:
      speak: ids of an answer to its text.
      pooling: "eos", the state of the end token, or "mean_generated", the mean over the answer,
        its end token included.
    """
    del encode  # `steps` are what runs
    given, clock = steps.prepare(place(params, rows)), clock or Clock()
    number = 0

    def group(batch: Batch) -> int:
        nonlocal number
        number += batch.begins
        return number

    with contextlib.closing(prefetch(batches)) as made:
        for _, some in itertools.groupby(made, group):
            seen = iter(partial(_next, some, on_batch, clock), None)
            for slots in run(steps, seen, given, rows):
                over = np.flatnonzero(np.asarray(slots.done) & (np.asarray(slots.row) >= 0))
                yield (
                    np.asarray(slots.row)[over],
                    _results(slots, over, steps.limit, speak, pooling),
                )


def _next(some: Iterator[Batch], on_batch: Callable[[Batch], None], clock: Clock) -> Batch | None:
    """The next batch that has rows; None behind the last."""
    while (batch := clock.next(some)) is not None:
        on_batch(batch)
        if len(batch.rows):
            return batch
    return None


def run(
    steps: Programs,
    batches: Iterator[Batch],
    given: Prepared,
    rows: NamedSharding | None,
) -> Iterator[Slots]:
    """Answers rows side by side; yields whenever some have ended.

    What a row gives depends on nothing that was answered before this call, to the last bit: the
    places start empty, with the room that the first batch needs.
    """
    slots: Slots | None = None
    ready: Ready | None = None
    waiting: deque[tuple[int, int]] = deque()  # (place in what is ready, row)
    more = True
    while True:
        free = deque([] if slots is None else np.flatnonzero(np.asarray(slots.row) < 0).tolist())
        while more and (slots is None or free):
            if not waiting:
                batch = next(batches, None)
                more = batch is not None
                if not more:
                    break
                prompts = jax.device_put(batch.arrays[0], rows)
                size, length = prompts.ids.shape
                line = np.append(batch.rows, np.full(size - len(batch.rows), -1)).astype(np.int32)
                ready = steps.read(given, prompts, jax.device_put(line, rows))
                waiting.extend(enumerate(batch.rows.tolist()))
                room = bucket(steps.before + length + steps.limit + 1)  # few programs
                if slots is None:
                    slots = _spread(steps.empty(given, size, room), rows)
                    free.extend(range(size))
                slots = _grow(slots, room)
            count = min(len(free), len(waiting))
            target = np.full(len(slots.row), len(slots.row), np.int32)
            source, row = np.zeros_like(target), np.zeros_like(target)
            for i in range(count):
                target[i] = free.popleft()
                source[i], row[i] = waiting.popleft()
            slots = steps.admit(slots, ready, source, target, row)
        if slots is None:
            return
        # Coming back for every single answer would cost more than its place is worth.
        size = len(slots.row)
        wanted = max(1, size // 8) if more else size
        slots = steps.advance(given, slots, np.int32(wanted))
        done = np.asarray(slots.done)
        row = np.asarray(slots.row)
        if not (done & (row >= 0)).any():
            return
        yield slots
        slots = slots._replace(row=_spread(np.where(done, -1, row), rows))


def _results(
    slots: Slots, over: np.ndarray, limit: int, speak: Callable[[np.ndarray], str], pooling: str
) -> tuple[Any, ...]:
    count, tokens = np.asarray(slots.count)[over], np.asarray(slots.tokens)[over]
    answers = np.empty(len(over), object)
    for i, (n, ids) in enumerate(zip(count.tolist(), tokens, strict=True)):
        answers[i] = Answer(speak(ids[: n - 1]), n - 1, n <= limit)
    if pooling == "eos":
        states = np.asarray(slots.end)[:, over]
    else:
        states = np.asarray(slots.total)[:, over] / count[None, :, None]
    return (*states, answers)


def _grow(slots: Slots, length: int) -> Slots:
    """Room for `length` tokens a row."""
    lacking = length - slots.past.k.shape[-1]
    if lacking <= 0:
        return slots
    none, free = (0, 0), (0, lacking)
    k = jnp.pad(slots.past.k, (none, none, none, none, free))
    v = jnp.pad(slots.past.v, (none, none, none, free, none))
    return slots._replace(past=Past(k, v))


def _spread(arrays: Any, rows: NamedSharding | None) -> Any:
    """Answers split over the devices as batches are: the second axis of what has three or more."""
    if rows is None:
        return arrays
    axis = rows.spec[0]

    def put(array: Any) -> jax.Array:
        spec = PartitionSpec(None, axis) if array.ndim > 2 else PartitionSpec(axis)
        return jax.device_put(array, NamedSharding(rows.mesh, spec))

    return jax.tree.map(put, arrays)
