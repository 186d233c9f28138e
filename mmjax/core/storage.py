"""Access local paths and object stores, `gs://...` or `s3://...`.

Small files go through etils' epath, whose paths have pathlib's methods (with gcsfs or s3fs);
arrays go through TensorStore. Both look for credentials where the clouds' own tools look.
AWS_ENDPOINT_URL names another S3-compatible store.

An object appears whole or not at all, so nothing is renamed in a bucket. What consists of several
objects is complete once its last object is there.
"""

import importlib.util
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import fsspec
from etils import epath

from mmjax.core.errors import InputError

DRIVERS = {"gs://": "gcsfs", "s3://": "s3fs"}  # by scheme: the package that reads small files there
# Otherwise TensorStore would try for many minutes with a bucket that does not exist or is gone.
PATIENCE = {"max_retries": 8, "initial_delay": "250ms", "max_delay": "8s"}


def remote(place: str | os.PathLike[str]) -> bool:
    """Return whether a place is a URL of an object store."""
    return str(place).startswith(tuple(DRIVERS))


def path(place: str | os.PathLike[str]) -> Path:
    """Return a path with pathlib's methods, local or in a bucket.

    Raises:
      InputError: another kind of URL; the package that reads such URLs is not installed.
    """
    text = str(place)
    if not remote(text):
        if "://" in text:
            raise InputError(f"{text}: only {' and '.join(DRIVERS)} URLs can be read and written")
        return Path(text)
    package = DRIVERS[text[:5]]
    if importlib.util.find_spec(package) is None:
        raise InputError(f"{text} needs the package {package}: pip install {package}")
    # Another process may have written since it was last listed.
    fsspec.config.conf.setdefault(text[:2], {}).setdefault("use_listings_cache", False)
    return epath.Path(text)


def local(place: str | os.PathLike[str]) -> Path:
    """Return a path of a file system; refuse a URL.

    It is for callers that cannot use a bucket.

    Raises:
      InputError: it is a URL.
    """
    if "://" in str(place):
        raise InputError(f"{place} must be on a file system here, not a URL")
    return Path(place)


def faults() -> tuple[type[Exception], ...]:
    """Return the exceptions that failed reads and writes raise."""
    exceptions: list[type[Exception]] = [OSError]
    if "botocore" in sys.modules:
        exceptions.append(importlib.import_module("botocore.exceptions").BotoCoreError)
    if "gcsfs" in sys.modules:
        exceptions.append(importlib.import_module("gcsfs.retry").HttpError)
        exceptions.append(importlib.import_module("google.auth.exceptions").GoogleAuthError)
    return tuple(exceptions)


def reason(error: Exception, place: str | os.PathLike[str]) -> str:
    """Return why a place cannot be read or written, for people."""
    message = getattr(error, "strerror", None) or str(error) or type(error).__name__
    message = message.splitlines()[0]
    if remote(place):
        return f"{message}; check the URL, your credentials and the connection"
    return message


def first_line(error: Exception) -> str:
    """Return TensorStore's message without the specification it appends."""
    return str(error).split(" [")[0].strip()


def open_file(place: str | os.PathLike[str]) -> IO[bytes]:
    """Open a file or an object for reading.

    An object is read whole into memory, since readers seek.
    """
    if remote(place):
        return io.BytesIO(path(place).read_bytes())
    return open(place, "rb")  # not as a Path: Path("") would be this folder


def key_values(place: str | os.PathLike[str]) -> dict[str, Any]:
    """Return TensorStore's specification of a folder or bucket prefix.

    Its path ends in a slash.
    """
    url = str(place).rstrip("/") + "/"
    if not remote(url):
        return {"driver": "file", "path": os.path.abspath(os.path.expanduser(url)) + "/"}
    bucket, _, inner = url[5:].partition("/")
    if url.startswith("gs://"):
        return {"driver": "gcs", "bucket": bucket, "path": inner, "gcs_request_retries": PATIENCE}
    spec = {"driver": "s3", "bucket": bucket, "path": inner, "s3_request_retries": PATIENCE}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION", "us-east-1")
        spec |= {"endpoint": endpoint, "aws_region": region}
    if "AWS_ACCESS_KEY_ID" in os.environ:  # else it also asks a service that only AWS machines have
        spec["aws_credentials"] = {"type": "environment"}
    return spec


def zarr(place: dict[str, Any]) -> dict[str, Any]:
    """Return TensorStore's specification of a zarr3 array.

    Args:
      place: where its chunks lie, as `key_values` gives it.
    """
    return {
        "driver": "zarr3",
        "kvstore": place,
        # Else a lost chunk would read as zeros, and a chunk of zeros would not be written.
        "fill_missing_data_reads": False,
        "store_data_equal_to_fill_value": True,
    }


def zarr_metadata(shape: Sequence[int], dtype: str, chunk: Sequence[int]) -> dict[str, Any]:
    """Return the zarr3 metadata of a new array.

    Every chunk has a checksum.
    """
    return {
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
    }
