"""Write files atomically: under a temporary name, then renamed.

A file appears whole or not at all. Paths may be URLs of buckets (`storage`), where every object is
whole without a rename.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

from mmjax.core import storage
from mmjax.core.errors import InputError


@contextlib.contextmanager
def atomic_folder(out: str | Path, *, overwrite: bool = False, last: str = "") -> Iterator[Path]:
    """Yield a new folder that becomes `out` on success.

    It lies beside `out` and is renamed when the block ends without an error. If `out` is a URL, the
    folder is a temporary one, whose files are then copied to the URL.

    Args:
      last: the file without which the folder at a URL does not count as complete.

    Raises:
      InputError: `out` exists already, is not empty and `overwrite` is not set; or it cannot be
        created there.
    """
    if storage.remote(out):
        with tempfile.TemporaryDirectory() as temporary:
            if not overwrite:
                refuse_nonempty(out)
            yield Path(temporary)
            _remove(storage.path(out), last)
            copy(Path(temporary), storage.path(out), last)
        return
    out = Path(out).resolve()  # "." has no name, and a link is no folder to remove
    if not overwrite:
        refuse_nonempty(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file, not a folder; choose another name")
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{out} cannot be made ({error.strerror}); choose another name") from None
    try:
        yield partial
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_nonempty(
    out: str | Path, why: str = "exists already; choose another folder or pass --overwrite"
) -> None:
    """Raise InputError if `out` is a folder with contents."""
    out = storage.path(out)
    with reading(out):
        if out.is_dir() and any(out.iterdir()):
            raise InputError(f"{out} {why}")


def copy(folder: Path, out: Path, last: str = "") -> None:
    """Copy a folder's files to a URL, several at a time.

    The file `last`, which completes the folder, is copied last.

    Raises:
      InputError: a file cannot be written there.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    completing = [path for path in paths if path == folder / last]

    def put(path: Path) -> None:
        write_bytes(out / path.relative_to(folder).as_posix(), path.read_bytes())

    with futures.ThreadPoolExecutor(16) as pool:
        for _ in pool.map(put, (path for path in paths if path not in completing)):
            pass
    for path in completing:
        put(path)


def _remove(out: Any, last: str) -> None:
    """Delete what lies at a URL, its completing file first."""
    try:
        if last:
            (out / last).unlink(missing_ok=True)
        if out.exists():
            out.rmtree()
    except storage.faults() as error:
        raise InputError(f"{out} cannot be replaced ({storage.reason(error, out)})") from None


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file by rename.

    A reader never sees half of it, even after a kill.

    Raises:
      InputError: it cannot be written there.
    """
    path = storage.path(path)
    if storage.remote(path):
        try:
            path.write_bytes(content)
        except storage.faults() as error:
            raise InputError(f"{path} cannot be written ({storage.reason(error, path)})") from None
        return
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({storage.reason(error, path)})") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON by rename.

    NaN is refused, because readers disagree on it.
    """
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def exists(path: str | Path) -> bool:
    """Return whether there is a file or a folder.

    Raises:
      InputError: a bucket does not say.
    """
    path = storage.path(path)
    with reading(path):
        return path.exists()


def read_bytes(path: str | Path) -> bytes:
    """Read a whole file.

    Raises:
      InputError: it is missing or cannot be read.
    """
    path = storage.path(path)
    with reading(path):
        return path.read_bytes()


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn read errors of a path or URL into InputError."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except storage.faults() as error:
        raise InputError(f"{path} cannot be read ({storage.reason(error, path)})") from None


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
      InputError: the file is missing or is not JSON.
    """
    try:
        return json.loads(read_bytes(path).decode())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None
