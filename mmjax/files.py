"""Files that appear whole or not at all: written aside, then renamed."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmjax.errors import InputError


@contextlib.contextmanager
def folder_aside(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a new folder beside `out` that becomes `out` when the block ends without an error.

    Raises:
      InputError: `out` exists already, is not empty and `overwrite` is not set; or it cannot be
        made there.
    """
    out = Path(out).resolve()  # "." has no name, and a link is no folder to remove
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise InputError(f"{out} exists already; choose another folder or pass --overwrite")
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


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file by rename, so that a reader or a kill never sees half of it.

    Raises:
      InputError: it cannot be written there.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(content)
        aside.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror})") from None
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, indented, by rename; NaN is refused, because no reader agrees on it."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
      InputError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None
