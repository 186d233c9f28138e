"""Read checkpoint tensors from disk: safetensors or torch files.

Weights are one file or several shards.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from mmjax.core.errors import InputError
from mmjax.encoders.checkpoints import pickled

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
SAFETENSORS = ("model.safetensors.index.json", "model.safetensors")
DTYPES = {  # of safetensors
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
# File names of a folder's weights; the first that exists is read.
NAMES = (*SAFETENSORS, "pytorch_model.bin.index.json", "pytorch_model.bin")


def tensors(path: Path) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """Yield each tensor's name and a function that reads it.

    Args:
      path: a file, or a folder, of which all shards are read.

    Raises:
      InputError: a file is missing, damaged or holds what is no tensor.
    """
    for shard in _shards(path):
        if shard.suffix == ".safetensors":
            yield from _safetensors(shard)
        else:
            for name, view in pickled.read(shard).items():
                yield name, partial(np.array, view)


def digest(path: Path) -> str:
    """Return a digest that identifies local weights.

    It differs between a checkpoint and a fine-tuned one of the same shapes.
    """
    hasher = hashlib.sha256()
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    for file in (file for file in files if file.suffix in SUFFIXES and file.is_file()):
        with open(file, "rb") as content:
            hasher.update(hashlib.file_digest(content, "sha256").digest())
    return f"sha256:{hasher.hexdigest()[:16]}"


def _shards(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    name = next((name for name in NAMES if (path / name).exists()), None)
    if name is None:
        raise InputError(
            f"{path} holds none of {', '.join(NAMES)}; name the file of weights itself"
        )
    if not name.endswith(".json"):
        return [path / name]
    try:
        shards = sorted(set(json.loads((path / name).read_text())["weight_map"].values()))
        shards = [path / shard for shard in shards]
    except (ValueError, KeyError, AttributeError, TypeError):
        raise InputError(f"{path / name} is no index of weights") from None
    for shard in shards:
        if not shard.exists():
            raise InputError(f"{shard} is missing; the index names it")
    return shards


def _safetensors(path: Path) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """Yield names and memory-mapped views of a safetensors file.

    Only the parts of a tensor that are indexed are read from the disk.
    """
    try:
        safe_open(path, framework="numpy")  # the library checks the header against the file
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        content = np.memmap(path, np.uint8, "r", 8 + length) if header else None
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from None

    def read(name: str) -> np.ndarray:
        entry = header[name]
        if entry["dtype"] not in DTYPES:
            raise InputError(f"{path} has a {name} of {entry['dtype']}, which cannot be read")
        begin, end = entry["data_offsets"]
        if begin == end:
            return np.zeros(entry["shape"], DTYPES[entry["dtype"]])
        assert content is not None  # as there is a header
        return content[begin:end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])

    for name in header.keys() - {"__metadata__"}:
        yield name, partial(read, name)


class Stored:
    """Array kept in files and read, in `dtype`, when indexed.

    `stored[index]` reads only what the index selects. So a device's part of a model goes from the
    disk to the device, and no host holds the whole.
    """

    def __init__(self, parts: Sequence[np.ndarray], dtype: Any, *, stacked: bool):
        """Keep views of files as one array.

        `then`, if it is set, is applied to the array once it lies on devices.

        Args:
          parts: views of files; if `stacked` they lie along a new leading axis.
        """
        self.then: Callable[[Any], Any] | None = None
        self.parts, self.dtype, self.stacked = list(parts), np.dtype(dtype), stacked
        self.shape = (len(parts), *parts[0].shape) if stacked else parts[0].shape
        self.ndim, self.size = len(self.shape), math.prod(self.shape)

    def __getitem__(self, index: Any) -> np.ndarray:
        index = index if isinstance(index, tuple) else (index,)
        if not self.stacked:
            return np.array(self.parts[0][index], self.dtype)
        if isinstance(index[0], int):
            return np.array(self.parts[index[0]][index[1:]], self.dtype)
        views = [part[index[1:]] for part in self.parts[index[0]]]
        array = np.empty((len(views), *views[0].shape), self.dtype)
        for row, part in zip(array, views, strict=True):
            row[...] = part
        return array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy  # the result is always a copy
        return self[(slice(None),) * self.ndim].astype(dtype or self.dtype, copy=False)
