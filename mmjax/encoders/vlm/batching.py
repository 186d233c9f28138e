"""Host side of generation: feed prompts to slots and collect answers."""

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
    """Generated answer of one input."""

    text: str
    tokens: int  # the end token not counted
    ended: bool  # by an end token; else it was cut


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
    """Generate answers and yield rows in the order they end.

    It replaces `core.stream`.

    Args:
      steps: the generation programs.
      speak: decodes the ids of an answer to its text.
      pooling: "eos", the state of the end token, or "mean_generated", the mean over the answer,
        its end token included.
      batches: as in `core.stream`.
      encode: unused; `steps` run instead.
      params: as in `core.stream`.
      rows: as in `core.stream`.
      on_batch: as in `core.stream`.
      clock: as in `core.stream`.

    Yields:
      Input indices [n]; a tuple of one array [n, D] for each layer and last the answers [n],
      objects of `Answer`.
    """
    del encode  # `steps` run instead
    prepared, clock = steps.prepare(place(params, rows)), clock or Clock()
    number = 0

    def group(batch: Batch) -> int:
        nonlocal number
        number += batch.begins
        return number

    with contextlib.closing(prefetch(batches)) as prefetched:
        for _, members in itertools.groupby(prefetched, group):
            nonempty = iter(partial(_next, members, on_batch, clock), None)
            for slots in run(steps, nonempty, prepared, rows):
                finished = np.flatnonzero(np.asarray(slots.done) & (np.asarray(slots.row) >= 0))
                yield (
                    np.asarray(slots.row)[finished],
                    _results(slots, finished, steps.limit, speak, pooling),
                )


def _next(some: Iterator[Batch], on_batch: Callable[[Batch], None], clock: Clock) -> Batch | None:
    """Return the next batch that has rows, or None after the last."""
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
    """Generate answers in parallel slots and yield finished ones.

    Slots are refilled as they become free. They start empty, with the room that the first batch
    needs, so a row's values do not depend on earlier calls, to the last bit.

    Args:
      steps: the generation programs.
      batches: batches that have rows.
      given: parameters and prefix.
      rows: sharding of a batch over devices.

    Yields:
      The slots, of which some have finished.
    """
    slots: Slots | None = None
    ready: Ready | None = None
    waiting: deque[tuple[int, int]] = deque()  # (row of `ready`, input)
    more = True
    while True:
        free = deque([] if slots is None else np.flatnonzero(np.asarray(slots.row) < 0).tolist())
        while more and (slots is None or free):
            if not waiting:
                batch = next(batches, None)
                if batch is None:
                    more = False
                    break
                prompts = jax.device_put(batch.arrays[0], rows)
                size, length = prompts.ids.shape
                inputs = np.append(batch.rows, np.full(size - len(batch.rows), -1)).astype(np.int32)
                ready = steps.read(given, prompts, jax.device_put(inputs, rows))
                waiting.extend(enumerate(batch.rows.tolist()))
                room = bucket(steps.before + length + steps.limit + 1)  # keeps programs few
                if slots is None:
                    slots = _spread(steps.empty(given, size, room), rows)
                    free.extend(range(size))
                slots = _grow(slots, room)
            assert slots is not None  # made for the first batch
            count = min(len(free), len(waiting))
            target = np.full(len(slots.row), len(slots.row), np.int32)
            source, row = np.zeros_like(target), np.zeros_like(target)
            for index in range(count):
                target[index] = free.popleft()
                source[index], row[index] = waiting.popleft()
            slots = steps.admit(slots, ready, source, target, row)
        if slots is None:
            return
        # Returning to the host for every single answer costs more than an idle slot.
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
    for index, (length, ids) in enumerate(zip(count.tolist(), tokens, strict=True)):
        answers[index] = Answer(speak(ids[: length - 1]), length - 1, length <= limit)
    if pooling == "eos":
        states = np.asarray(slots.end)[:, over]
    else:
        states = np.asarray(slots.total)[:, over] / count[None, :, None]
    return (*states, answers)


def _grow(slots: Slots, length: int) -> Slots:
    """Pad the cache to room for `length` tokens a row."""
    lacking = length - slots.past.k.shape[-1]
    if lacking <= 0:
        return slots
    unpadded, extra = (0, 0), (0, lacking)
    k = jnp.pad(slots.past.k, (unpadded, unpadded, unpadded, unpadded, extra))
    v = jnp.pad(slots.past.v, (unpadded, unpadded, unpadded, extra, unpadded))
    return slots._replace(past=Past(k, v))


def _spread(arrays: Any, rows: NamedSharding | None) -> Any:
    """Shard slots over the devices as batches are.

    Arrays with three or more axes are split along the second, the others along the first.
    """
    if rows is None:
        return arrays
    axis = rows.spec[0]

    def put(array: Any) -> jax.Array:
        spec = PartitionSpec(None, axis) if array.ndim > 2 else PartitionSpec(axis)
        return jax.device_put(array, NamedSharding(rows.mesh, spec))

    return jax.tree.map(put, arrays)
