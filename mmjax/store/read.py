"""Open a store and read it straight into any sharding."""

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore as ts
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from mmjax.core import storage
from mmjax.core.errors import InputError
from mmjax.core.ids import hash_ids
from mmjax.parallel.lazy_features import LazyFeatures
from mmjax.store import layout


def open_store(
    url: str | Path,
    *,
    item_hash: str | None = None,
    n_items: int | None = None,
    context: ts.Context | None = None,
) -> "Store":
    """Open a finished store.

    Args:
      item_hash: the hash that the manifest must have (`Dataset.item_hash()`).
      n_items: the number of items that the store must have; checked before the hash, for a better
        error message.

    Raises:
      InputError: there is no store, it is unfinished or damaged, or it has other items.
    """
    kv = layout.kvstore(url, context)
    text = layout.read(url, kv, "manifest.json")
    if text is None:
        raise InputError(f"there is no store at {url} (no manifest.json)")
    try:
        manifest = json.loads(text)
    except ValueError as error:
        raise InputError(f"{url}/manifest.json is not JSON: {error}") from None
    if manifest.get("format") != layout.FORMAT:
        raise InputError(
            f"{url}/manifest.json has format {manifest.get('format')}, not {layout.FORMAT}"
        )
    if not manifest["complete"]:
        raise InputError(f"the store {url} is unfinished; run the command that began it again")
    count = manifest["shape"][0]
    if n_items is not None and n_items != count:
        raise InputError(
            f"{url} holds {count} items but the dataset has {n_items}, so rows would be silently "
            "misaligned; extract it again from this dataset"
        )
    if item_hash is not None and item_hash != manifest["item_hash"]:
        raise InputError(
            f"{url} holds {count} items of another dataset or in another order (item hash "
            f"{manifest['item_hash']}, not {item_hash}), so rows would be silently misaligned; "
            "extract it again from this dataset"
        )
    try:
        features, present = (layout.zarr(kv, part, context) for part in layout.ARRAYS)
    except ValueError as error:
        raise InputError(f"the store {url} is damaged: {storage.first_line(error)}") from None
    if list(features.shape) != manifest["shape"] or list(present.shape) != manifest["shape"][:1]:
        raise InputError(f"{url}: arrays of shape {features.shape} and {present.shape} contradict")
    return Store(str(url), manifest, kv, features, present)


@dataclass(frozen=True)
class Store:
    """Manifest and handles of a store.

    No rows are read on opening.
    """

    url: str
    manifest: dict[str, Any]
    kv: ts.KvStore
    features: ts.TensorStore
    present: ts.TensorStore

    @property
    def shape(self) -> tuple[int, int]:
        """Return the shape (I, F)."""
        return tuple(self.manifest["shape"])

    @property
    def dtype(self) -> np.dtype:
        return layout.DTYPES[self.manifest["dtype"]]

    def item_ids(self) -> list[str]:
        """Return the ids of the rows [I].

        Raises:
          InputError: the store has no ids (older stores have none) or other ids.
        """
        content = layout.read(self.url, self.kv, "items.txt")
        ids = (content or b"").decode().split("\n")[:-1]
        if hash_ids(ids) != self.manifest["item_hash"]:
            raise InputError(f"{self.url} lacks its items.txt; extract it again")
        return ids

    def spans(self) -> Iterator[tuple[int, int]]:
        """Yield (start, stop) of each chunk's rows."""
        for start in range(0, self.shape[0], self.manifest["chunk_rows"]):
            yield start, min(start + self.manifest["chunk_rows"], self.shape[0])

    def blocks(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield each chunk's first row, features and mask.

        Features are [n, F], present is [n]. Errors are those of `read`.
        """
        for start, stop in self.spans():
            yield start, *self.block(start, stop)

    def block(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return features [n, F] and present [n] of some rows.

        Errors are those of `read`.
        """
        read = self._start((start, stop), (0, self.shape[1]), self.dtype)
        return read(), self._mask(start, stop)

    def read(
        self, sharding: Sharding | None = None, dtype: Any = None, *, pad_rows_to: int | None = None
    ) -> tuple[Any, Any]:
        """Read features [I, F] and present [I].

        They are NumPy arrays or, with a sharding, sharded arrays. Then each process reads only the
        rows and columns of its own devices, and those once even if several of its devices hold
        them.

        Args:
          sharding: of the features; None returns NumPy arrays.
          dtype: what to convert to; by default the store's own.
          pad_rows_to: total number of rows, at least I; added rows are zeros and absent.

        Raises:
          InputError: a missing or corrupt chunk, or a NaN or infinite value.
          ValueError: the sharding does not fit the shape.
        """
        dtype = np.dtype(dtype or self.dtype)
        rows, width = max(pad_rows_to or 0, self.shape[0]), self.shape[1]
        if sharding is None:
            return self._start((0, rows), (0, width), dtype)(), self._mask(0, rows)
        dtype = jax.dtypes.canonicalize_dtype(dtype)
        try:
            sharding.shard_shape((rows, width))
        except ValueError as error:
            raise ValueError(f"{error}; see pad_rows_to of Store.read") from error

        def bounds(at: Any) -> tuple[tuple[int, int], tuple[int, int]]:
            return at[0].indices(rows)[:2], at[1].indices(width)[:2]

        def presence(at: Any) -> np.ndarray:
            return self._mask(*at[0].indices(rows)[:2])

        device_indices = sharding.addressable_devices_indices_map((rows, width)).values()
        # All reads start before the first wait: with a bucket, latency dominates.
        blocks = {at: self._start(*at, dtype) for at in {bounds(index) for index in device_indices}}
        features = jax.make_array_from_callback(
            (rows, width), sharding, lambda at: blocks[bounds(at)](), dtype=dtype
        )
        present = jax.make_array_from_callback((rows,), _of_rows(sharding), presence)
        return features, present

    def mask(self) -> np.ndarray:
        """Return the mask of present items [I]."""
        return self._mask(0, self.shape[0])

    def unread(self, dtype: Any) -> LazyFeatures:
        """Return the features for a mesh, to be read later.

        The errors of `read` are raised when they are read.
        """
        return LazyFeatures(
            self.shape,
            np.dtype(dtype),
            lambda where, count: self.read(where, dtype, pad_rows_to=count)[0],
            # Stops at the first chunk with a non-zero value.
            some=lambda: any(rows.any() for _, rows, _ in self.blocks()),
            digest=self.manifest["content_hash"],
        )

    def verify(self) -> None:
        """Read all chunks and check them against the manifest's digests.

        crc32c, checked by every read, finds a damaged chunk; this also finds an exchanged one.

        Raises:
          InputError: a chunk differs from its digest, or an error of `read`.
        """
        for (start, rows, present), digest in zip(
            self.blocks(), self.manifest["digests"], strict=True
        ):
            if layout.digest(rows, present) != digest:
                raise InputError(f"{self.url}: rows from {start} are not those that were written")

    def _start(
        self, rows: tuple[int, int], columns: tuple[int, int], dtype: np.dtype
    ) -> Callable[[], np.ndarray]:
        """Start to read a block; return a function that waits.

        The function waits for the block once and pads it.
        """
        start, stop = (min(row, self.shape[0]) for row in rows)
        future = self.features[start:stop, slice(*columns)].read() if start < stop else None

        @functools.cache
        def wait() -> np.ndarray:
            if future is None:
                return np.zeros((rows[1] - rows[0], columns[1] - columns[0]), dtype)
            with np.errstate(over="ignore"):  # what overflows the dtype is reported below
                block = self._result(future, start, stop).astype(dtype, copy=False)
            bad = ~np.isfinite(block).all(axis=1)
            if bad.any():
                row = start + int(bad.argmax())
                raise InputError(f"{self.url}: row {row} holds a NaN or infinite value as {dtype}")
            return np.pad(block, ((0, rows[1] - stop), (0, 0))) if rows[1] > stop else block

        return wait

    def _mask(self, start: int, stop: int) -> np.ndarray:
        mask = np.zeros(stop - start, bool)
        stop = min(stop, self.shape[0])
        if start < stop:
            future = self.present[start:stop].read()
            mask[: stop - start] = self._result(future, start, stop)
        return mask

    def _result(self, future: ts.Future, start: int, stop: int) -> np.ndarray:
        """Wait for a read of these rows.

        A failure is traced to its chunk.
        """
        try:
            return future.result()
        except ValueError as error:
            for first, last in self.spans():
                if first < stop and start < last:
                    self._check_chunk(first, last)
            raise InputError(f"{self.url} cannot be read: {storage.first_line(error)}") from None

    def _check_chunk(self, start: int, stop: int) -> None:
        number = start // self.manifest["chunk_rows"]
        for key, array in (
            (f"features/c/{number}/0", self.features),
            (f"present/c/{number}", self.present),
        ):
            label = f"{self.url}: chunk {key} (rows {start} to {stop - 1})"
            if self.kv.read(key).result().state != "value":
                raise InputError(f"{label} is missing; extract the store again")
            try:
                array[start:stop].read().result()
            except ValueError:
                raise InputError(
                    f"{label} is corrupt: its checksum or length is wrong; extract the store again"
                ) from None


def _of_rows(sharding: Sharding) -> Sharding:
    """Return the sharding of row vectors for a matrix sharding."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))
    if isinstance(sharding, SingleDeviceSharding):
        return sharding
    raise TypeError(f"{type(sharding).__name__} has no row part; give a NamedSharding")
