"""Disk layout of a store: key-value store, zarr arrays, manifest, digests."""

import contextlib
import fcntl
import hashlib
import json
import os
import weakref
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tensorstore as ts

from mmjax.core import storage
from mmjax.core.errors import InputError

FORMAT = 1
CHUNK_BYTES = 4 << 20
LOCK = ".lock"
ARRAYS = ("features/", "present/")
BESIDE = ("items.txt", "failures.jsonl", "writer")  # single values, besides the manifest
DTYPES = {
    np.dtype(dtype).name: np.dtype(dtype)
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)
}


def kvstore(url: str | Path, context: ts.Context | None) -> ts.KvStore:
    """Open the key-value store at a path or URL.

    Files of a folder and objects of a bucket have the same interface.

    Raises:
      InputError: the path is a file, or the URL cannot hold a store.
    """
    spec: Any = str(url)  # memory:// and other kinds of TensorStore
    if storage.remote(url) or "://" not in spec:
        spec = storage.key_values(url)
        if spec["driver"] == "file" and os.path.isfile(spec["path"][:-1]):
            raise InputError(f"{url} is a file, not a store; choose another name")
    try:
        return ts.KvStore.open(spec, context=context).result()
    except ValueError as error:
        raise InputError(f"{url} cannot hold a store: {storage.first_line(error)}") from None


def read(url: str | Path, kv: ts.KvStore, key: str) -> bytes | None:
    """Return the value of a key, None if there is none.

    Raises:
      InputError: the store cannot be reached or its contents cannot be read.
    """
    try:
        answer = kv.read(key).result()
    except ValueError as error:
        raise InputError(f"{url}/{key} cannot be read: {storage.first_line(error)}") from None
    return answer.value if answer.state == "value" else None


def write_manifest(kv: ts.KvStore, manifest: dict[str, Any]) -> None:
    """Write the manifest as one value.

    A reader never sees a part of it.
    """
    text = json.dumps(manifest, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write(kv, "manifest.json", text.encode())


def write(kv: ts.KvStore, key: str, value: bytes) -> None:
    """Write one value as a whole.

    Raises:
      InputError: it cannot be written, as on a full disk.
    """
    try:
        kv.write(key, value).result()
    except ValueError as error:
        raise InputError(f"{kv.url}{key} cannot be written: {storage.first_line(error)}") from None


def zarr(
    kv: ts.KvStore, part: str, context: ts.Context | None, dtype: str = "", *shapes: tuple
) -> ts.TensorStore:
    """Open or create an array of the store.

    It is created if a dtype, a shape and a chunk shape are given.
    """
    inner = kv.spec()
    inner.path += part
    spec = storage.zarr(inner.to_json())
    if dtype:
        spec["metadata"] = storage.zarr_metadata(shapes[0], dtype, shapes[1])
    return ts.open(spec, context=context, open=not dtype, create=bool(dtype)).result()


def digest(rows: np.ndarray, present: np.ndarray) -> str:
    """Return the digest of a chunk's contents."""
    return hashlib.sha256(rows.tobytes() + present.tobytes()).hexdigest()[:32]


class Lock:
    """Lock file in a folder.

    It is held until it is closed or until its holder or the process is gone.

    Raises:
      BlockingIOError: another holder has it.
      OSError: the folder or the file cannot be created.
    """

    def __init__(self, folder: str):
        os.makedirs(folder, exist_ok=True)
        self.path = os.path.join(folder, LOCK)
        while True:
            handle = os.open(self.path, os.O_CREAT | os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(handle)
                raise
            # The previous holder may have removed the file since it was opened.
            if os.path.exists(self.path) and os.path.samestat(os.fstat(handle), os.stat(self.path)):
                break
            os.close(handle)
        self.close = weakref.finalize(self, self._release, handle, self.path)

    @staticmethod
    def _release(handle: int, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.close(handle)


def delete_contents(kv: ts.KvStore) -> None:
    """Delete the contents of a store, but not its manifest.

    Other files in the same place stay.
    """
    for part in (*ARRAYS, "parts/"):
        after = part[:-1] + chr(ord("/") + 1)
        kv.delete_range(ts.KvStore.KeyRange(part, after)).result()
    for key in BESIDE:
        kv.write(key, None).result()


def prune(kv: ts.KvStore) -> None:
    """Remove the empty folders that deleted files leave behind.

    Buckets have no folders.
    """
    spec = kv.spec().to_json()
    if spec["driver"] == "file":
        for folder, _, _ in os.walk(spec["path"], topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
