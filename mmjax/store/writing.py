"""Creating a store and filling it chunk by chunk."""

import hashlib
import json
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from mmjax import __version__
from mmjax.data.dataset import hash_ids
from mmjax.errors import InputError
from mmjax.store import layout
from mmjax.store.reading import Store

ABOUT = ("encoder", "revision", "preprocessing", "layer", "pooling")


def create(
    url: str | Path,
    *,
    shape: tuple[int, int],
    dtype: Any,
    item_ids: Sequence[str],
    chunk_rows: int | None = None,
    overwrite: bool = False,
    context: ts.Context | None = None,
    **about: Any,
) -> "Writer":
    """Starts an unfinished store of `shape` [I, F]; its rows come through the returned Writer.

    Args:
      chunk_rows: rows a chunk; about 4 MiB worth of them unless given.
      overwrite: replace a store that is there already; it is gone from now on.
      context: TensorStore context, for credentials, caches and concurrency.
      about: JSON values for the manifest; `encoder`, `revision`, `preprocessing`, `layer` and
        `pooling` have a place of their own, the rest becomes `settings`.

    Raises:
      InputError: something is there already, a dtype that is no float, or another item count.
    """
    name = str(np.dtype(dtype))
    if name not in layout.DTYPES:
        raise InputError(
            f"{url} cannot hold {name}; embeddings are one of {', '.join(layout.DTYPES)}"
        )
    count, width = (int(n) for n in shape)
    if count != len(item_ids):
        raise InputError(f"{url}: {count} rows of features but {len(item_ids)} items")
    if count < 1 or width < 1:
        raise InputError(f"{url}: features of shape [{count}, {width}] are empty")
    refuse_existing(url, overwrite=overwrite, context=context)
    chunk_rows = chunk_rows or max(1, layout.CHUNK_BYTES // (width * layout.DTYPES[name].itemsize))
    manifest = {
        "format": layout.FORMAT,
        "complete": False,
        **{key: about.pop(key, "") for key in ABOUT},
        "settings": about,
        "dtype": name,
        "shape": [count, width],
        "chunk_rows": min(chunk_rows, count),
        "item_hash": hash_ids(item_ids),
        "code_version": __version__,
    }
    kv = layout.kvstore(url, context)
    # The manifest goes first: from here on an older store under this name cannot be opened.
    layout.write_manifest(kv, manifest)
    layout.delete_arrays(kv)
    rows = manifest["chunk_rows"]
    arrays = (
        layout.zarr(kv, "features/", context, name, (count, width), (rows, width)),
        layout.zarr(kv, "present/", context, "bool", (count,), (rows,)),
    )
    return Writer(Store(str(url), manifest, kv, *arrays), item_ids)


def write_array(
    url: str | Path,
    features: np.ndarray,
    *,
    item_ids: Sequence[str],
    present: np.ndarray | None = None,
    **about: Any,
) -> None:
    """Writes `features` [I, F] as a finished store; `about` and the errors are those of `create`.

    Args:
      present: bool [I]; every item unless given.
    """
    if features.ndim != 2 or (present is not None and present.shape != features.shape[:1]):
        raise InputError(f"{url}: features must be [I, F] and present [I], not {features.shape}")
    dtype = about.pop("dtype", features.dtype)
    with create(url, shape=features.shape, dtype=dtype, item_ids=item_ids, **about) as writer:
        for start, stop in writer.store.spans():
            there = np.ones(stop - start, bool) if present is None else present[start:stop]
            writer.write(start, features[start:stop], there)


def refuse_existing(
    url: str | Path, *, overwrite: bool = False, context: ts.Context | None = None
) -> None:
    """Checks that a store may be created here, before the work that will fill it.

    Raises:
      InputError: a store is there and `overwrite` is not set, or something else is there.
    """
    kv = layout.kvstore(url, context)
    if layout.read(url, kv, "manifest.json") is not None:
        if not overwrite:
            raise InputError(f"{url} exists already; choose another name or pass --overwrite")
    elif kv.list().result():  # not ours to delete
        raise InputError(f"{url} holds files but no store; choose another name")


class Writer:
    """Fills a store that `create` began, chunk by chunk, in any order.

    As a context manager it finishes the store, or takes it away when the block raises.
    """

    def __init__(self, store: Store, item_ids: Sequence[str]):
        self.store = store
        self._item_ids = item_ids
        self._digests: dict[int, str] = {}
        self._pending: deque[list[ts.WriteFutures]] = deque()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            if not self.store.manifest["complete"]:
                self.discard()

    def write(self, start_row: int, rows: np.ndarray, present: np.ndarray) -> None:
        """Writes whole chunks, asynchronously; absent rows are written as zeros.

        Args:
          start_row: first row, at the start of a chunk.
          rows: [n, F], to the end of a chunk or of the store.
          present: bool [n].

        Raises:
          InputError: a present row with a NaN or infinite value.
          ValueError: rows that are no whole chunks.
        """
        (count, width), step = self.store.shape, self.store.manifest["chunk_rows"]
        stop = start_row + len(rows)
        if rows.shape[1:] != (width,) or present.shape != rows.shape[:1]:
            raise ValueError(f"rows {rows.shape} and present {present.shape} for width {width}")
        if start_row % step or stop > count or (stop % step and stop != count):
            raise ValueError(f"rows {start_row} to {stop} are no whole chunks of {step} rows")
        for first in range(start_row, stop, step):
            chunk = slice(first - start_row, first - start_row + step)
            there = np.array(present[chunk], bool)
            block = np.zeros((len(there), width), self.store.dtype)
            with np.errstate(over="ignore"):  # what overflows the dtype is reported below
                block[there] = rows[chunk][there]
            bad = ~np.isfinite(block).all(axis=1)
            if bad.any():
                row = first + int(bad.argmax())
                raise InputError(
                    f"{self.store.url}: the features of item {self._item_ids[row]!r} (row {row}) "
                    f"hold a NaN or infinite value as {block.dtype}"
                )
            last = first + len(block)
            self._digests[first] = layout.digest(block, there)
            writes = (self.store.features, block), (self.store.present, there)
            self._pending.append([array[first:last].write(part) for array, part in writes])
            while len(self._pending) > 4:  # bounds the memory of chunks in flight
                self._wait()

    def finish(self) -> Store:
        """Completes the manifest; chunks that another writer wrote are read back for it.

        Raises:
          InputError: a chunk was never written.
        """
        while self._pending:
            self._wait()
        store = self.store
        for start, stop in store.spans():
            if start not in self._digests:
                self._digests[start] = layout.digest(*store.block(start, stop))
        digests = [self._digests[start] for start, _ in store.spans()]
        about = json.dumps([store.dtype.name, store.shape, store.manifest["item_hash"], digests])
        content_hash = hashlib.sha256(about.encode()).hexdigest()[:32]
        store.manifest.update(complete=True, content_hash=content_hash, digests=digests)
        layout.write_manifest(store.kv, store.manifest)
        return store

    def discard(self) -> None:
        """Takes the unfinished store away again; its manifest last."""
        for futures in self._pending:
            for future in futures:
                future.commit.exception()
        layout.delete_arrays(self.store.kv)
        self.store.kv.write("manifest.json", None).result()
        layout.prune(self.store.kv)

    def _wait(self) -> None:
        for future in self._pending.popleft():
            try:
                future.result()
            except ValueError as error:
                raise InputError(
                    f"{self.store.url} cannot be written: {layout.first_line(error)}"
                ) from None
