"""Fill a store chunk by chunk.

A kill loses at most the chunks in flight.
"""

import hashlib
import json
import uuid
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorstore as ts

from mmjax.core import storage
from mmjax.core.errors import InputError
from mmjax.store import layout

if TYPE_CHECKING:
    from mmjax.store.read import Store


class Writer:
    """Writer of the chunks of a store that `create` began.

    Chunks may come in any order. As a context manager it finishes the store, or deletes it when the
    block raises. With `keep` the store can be resumed: it then stays if it holds a chunk. With
    `joined` the store belongs to another process: the Writer writes chunks and leaves all else to
    that process.

    Every chunk leaves a record `parts/<first row>.json` once its arrays are on disk. A Writer that
    resumes the store knows from the records which chunks are done. `finish` gathers them into the
    manifest.
    """

    def __init__(
        self,
        store: "Store",
        item_ids: Sequence[str],
        lock: layout.Lock | None = None,
        *,
        keep: bool = False,
        joined: bool = False,
    ):
        self.store = store
        self._item_ids = item_ids
        self._lock = lock
        self._keep, self._joined = keep, joined
        self._pending: deque[tuple[int, dict[str, Any], list[ts.WriteFutures]]] = deque()
        self._parts: dict[int, dict[str, Any]] = {}  # records this writer has written or read
        self.done = self._read_done()  # first rows of the chunks that are on disk
        if joined:
            self._token = store.kv.read("writer").result().value
        else:
            self._token = uuid.uuid4().hex.encode()
            if lock is None and not store.manifest["complete"]:
                layout.write(store.kv, "writer", self._token)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if self._joined:
            self.settle()
            return
        try:
            if kind is None:
                self.finish()
            elif self._keep:
                self.settle()
        finally:
            # Read again: other writers may have written chunks of it.
            if not self.store.manifest["complete"] and not (self._keep and self._read_done()):
                self.discard()
            self._unlock()

    def write(
        self, start_row: int, rows: np.ndarray, present: np.ndarray, notes: Sequence[Any] = ()
    ) -> None:
        """Write whole chunks asynchronously; absent rows become zeros.

        Args:
          start_row: first row, at the start of a chunk.
          rows: [n, F], to the end of a chunk or of the store.
          present: bool [n].
          notes: JSON values about these rows, returned by `notes` once all is written.

        Raises:
          InputError: a present row with a NaN or infinite value; the disk is full; another
            process has begun to write this store.
          ValueError: the shapes do not match, or the rows are not whole chunks.
        """
        (count, width), step = self.store.shape, self.store.manifest["chunk_rows"]
        stop = start_row + len(rows)
        if rows.shape[1:] != (width,) or present.shape != rows.shape[:1]:
            raise ValueError(f"rows {rows.shape} and present {present.shape} for width {width}")
        if start_row % step or stop > count or (stop % step and stop != count):
            raise ValueError(f"rows {start_row} to {stop} are no whole chunks of {step} rows")
        for first in range(start_row, stop, step):
            chunk = slice(first - start_row, first - start_row + step)
            mask = np.array(present[chunk], bool)
            block = np.zeros((len(mask), width), self.store.dtype)
            with np.errstate(over="ignore"):  # what overflows the dtype is reported below
                block[mask] = rows[chunk][mask]
            bad = ~np.isfinite(block).all(axis=1)
            if bad.any():
                row = first + int(bad.argmax())
                raise InputError(
                    f"{self.store.url}: the features of item {self._item_ids[row]!r} (row {row}) "
                    f"hold a NaN or infinite value as {block.dtype}"
                )
            last = first + len(block)
            part = {"digest": layout.digest(block, mask), "notes": list(notes)}
            notes = ()  # if several chunks are written, the first has the notes
            writes = (self.store.features, block), (self.store.present, mask)
            futures = [array[first:last].write(values) for array, values in writes]
            self._pending.append((first, part, futures))
            while len(self._pending) > 4:  # bounds the memory of chunks in flight
                self._wait()

    def notes(self) -> list[Any]:
        """Return the notes about all rows, in row order.

        They include those of earlier writers.
        """
        self.settle()
        return [note for start, _ in self.store.spans() for note in self._part(start)["notes"]]

    def attach(self, name: str, content: bytes) -> None:
        """Write a file of this name beside the arrays."""
        layout.write(self.store.kv, name, content)

    def finish(self, **outcome: Any) -> "Store":
        """Complete the manifest.

        `outcome` are JSON values that are known only at the end.

        Raises:
          InputError: a chunk was never written.
        """
        store = self.store
        self.settle()
        if store.manifest["complete"]:
            self._tidy()
            return store
        digests = [self._part(start)["digest"] for start, _ in store.spans()]
        identity = json.dumps([store.dtype.name, store.shape, store.manifest["item_hash"], digests])
        content_hash = hashlib.sha256(identity.encode()).hexdigest()[:32]
        store.manifest.update(complete=True, content_hash=content_hash, digests=digests)
        if outcome:
            store.manifest["outcome"] = outcome
        try:
            layout.write_manifest(store.kv, store.manifest)
        except InputError:
            store.manifest["complete"] = False
            raise
        self._tidy()
        return store

    def discard(self) -> None:
        """Delete the unfinished store, its manifest last."""
        for _, _, futures in self._pending:
            for future in futures:
                future.commit.exception()
        self._pending.clear()
        layout.delete_contents(self.store.kv)
        self.store.kv.write("manifest.json", None).result()
        self._unlock()
        layout.prune(self.store.kv)

    def _read_done(self) -> set[int]:
        if self.store.manifest["complete"]:
            return {start for start, _ in self.store.spans()}
        names = self.store.kv.list(ts.KvStore.KeyRange("parts/", "parts0")).result()
        return {int(name[len("parts/") : -len(".json")]) for name in names}

    def _part(self, start: int) -> dict[str, Any]:
        if start not in self._parts:
            content = layout.read(self.store.url, self.store.kv, f"parts/{start}.json")
            if content is None:
                raise InputError(f"{self.store.url}: the rows from {start} were never written")
            self._parts[start] = json.loads(content)
        return self._parts[start]

    def settle(self) -> None:
        """Wait until all chunks and their records are on disk."""
        while self._pending:
            self._wait()

    def _wait(self) -> None:
        start, part, futures = self._pending.popleft()
        for future in futures:
            try:
                future.result()
            except ValueError as error:
                raise InputError(
                    f"{self.store.url} cannot be written: {storage.first_line(error)}"
                ) from None
        if self._lock is None and self.store.kv.read("writer").result().value != self._token:
            raise InputError(f"another process has begun to write {self.store.url}; this one stops")
        layout.write(self.store.kv, f"parts/{start}.json", json.dumps(part).encode())
        self._parts[start] = part
        self.done.add(start)

    def _tidy(self) -> None:
        """Delete what only an unfinished store needs."""
        self.store.kv.delete_range(ts.KvStore.KeyRange("parts/", "parts0")).result()
        self.store.kv.write("writer", None).result()
        self._unlock()
        layout.prune(self.store.kv)

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
