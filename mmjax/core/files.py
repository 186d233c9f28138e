"""Files that appear whole or not at all: written aside, then renamed.

Paths may be URLs of buckets (`storage`), where an object is whole by itself.
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
    """Yields a new folder beside `out` that becomes `out` when the block ends without an error.

    If `out` is a URL, the folder is a temporary one, whose files are copied there then.

    Args:
      last: the file without which the folder is not taken for whole.

    Raises:
      InputError: `out` exists already, is not empty and `overwrite` is not set; or it cannot be
        made there.
    """
    if storage.remote(out):
        with tempfile.TemporaryDirectory() as aside:
            if not overwrite:
                refuse_nonempty(out)
            yield Path(aside)
            _remove(storage.path(out), last)
            copy(Path(aside), storage.path(out), last)
        return
    out = Path(out).resolve()  # "." has no name, and a link is no folder to remove
    if not overwrite:
        refuse_nonempty(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file, not a folder; choose another name")
    aside = out.with_name(f".{out.name}.partial-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{out} cannot be made ({error.strerror}); choose another name") from None
    try:
        yield aside
        if out.exists():
            shutil.rmtree(out)
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def refuse_nonempty(
    out: str | Path, why: str = "exists already; choose another folder or pass --overwrite"
) -> None:
    """Raises InputError if `out` is a folder with something in it."""
    out = storage.path(out)
    with reading(out):
        if out.is_dir() and any(out.iterdir()):
            raise InputError(f"{out} {why}")


def copy(folder: Path, out: Path, last: str = "") -> None:
    """Copies a folder's files to a URL, several at a time, and one that completes it last.

    Raises:
      InputError: one cannot be written there.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    ends = [path for path in paths if path == folder / last]

    def put(path: Path) -> None:
        write_bytes(out / path.relative_to(folder).as_posix(), path.read_bytes())

    with futures.ThreadPoolExecutor(16) as pool:
        for _ in pool.map(put, (path for path in paths if path not in ends)):
            pass
    for path in ends:
        put(path)


def _remove(out: Path, last: str) -> None:
    """Takes away what lies at a URL, what completes it first."""
    try:
        if last:
            (out / last).unlink(missing_ok=True)
        if out.exists():
            out.rmtree()
    except storage.faults() as error:
        raise InputError(f"{out} cannot be replaced ({storage.reason(error, out)})") from None


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes a file by rename, so that a reader or a kill never sees half of it.

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
    aside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(content)
        aside.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({storage.reason(error, path)})") from None
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, indented, by rename; NaN is refused, because no reader agrees on it."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def exists(path: str | Path) -> bool:
    """Whether there is a file or a folder.

    Raises:
      InputError: a bucket does not say.
    """
    path = storage.path(path)
    with reading(path):
        return path.exists()


def read_bytes(path: str | Path) -> bytes:
    """Reads a file whole.

    Raises:
      InputError: it is missing or cannot be read.
    """
    path = storage.path(path)
    with reading(path):
        return path.read_bytes()


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Says in an InputError why something at a path, or at a URL, cannot be read."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except storage.faults() as error:
        raise InputError(f"{path} cannot be read ({storage.reason(error, path)})") from None


def read_json(path: str | Path) -> Any:
    """Reads JSON.

    Raises:
      InputError: the file is missing or is not JSON.
    """
    try:
        return json.loads(read_bytes(path).decode())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None
