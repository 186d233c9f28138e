"""Read torch files without torch and without running their code.

`torch.save` (.pt, .pth, .bin) pickles an object whose tensors point to storages kept outside the
pickle. Since torch 1.6 the file is a zip: `<top>/data.pkl`, an uncompressed member
`<top>/data/<key>` for each storage, and `<top>/byteorder`. Before, it was five pickles after each
other (magic number, protocol, system, the object, the storages' keys), then every storage as a
count of 8 bytes and that many elements.

A pickle is a program that may call whatever it can name. Here it can name only what a state dict
needs, and every such name is answered by inert stand-ins of this file.
"""

import io
import mmap
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mmjax.core.errors import InputError

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_ZIP = b"PK\3\4"
_DTYPES = {  # by torch's names
    **{
        name: np.dtype(name)
        for name in (
            *("float16", "float32", "float64", "complex64", "complex128", "bool"),
            *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        )
    },
    **{
        name: np.dtype(getattr(ml_dtypes, name))
        for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")
    },
}
_STORAGES = {
    "BFloat16Storage": "bfloat16",
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "ShortStorage": "int16",
    "UntypedStorage": "uint8",
}
_WRAPPERS = ("state_dict", "model_state_dict", "model")


class _Storage(NamedTuple):
    key: str
    dtype: str
    elements: int


Locate = Callable[[_Storage], memoryview]


class _Tensor(NamedTuple):
    storage: _Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Named(dict):
    """Stand-in for OrderedDict.

    Attributes that a pickle would set on it (`_metadata`) are dropped.
    """

    def __setstate__(self, state: Any) -> None:
        pass


def read(path: Path) -> dict[str, np.ndarray]:
    """Read the tensors of a state dict by name.

    The tensors are read-only views of the file, mapped into memory. Of a checkpoint that wraps its
    state dict, a dict called state_dict, model_state_dict or model is preferred, then the one with
    the most tensors. The prefix `module.`, which DataParallel puts before every name, is dropped.

    Raises:
      InputError: missing, damaged or no file of torch; it names anything but tensors and plain
        values; it holds no dict of tensors, or several that are as good.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        value, locate, big_endian = (_zip if content[:4] == _ZIP else _stream)(path, content)
        tensors = {name: _view(tensor, locate) for name, tensor in _state_dict(path, value).items()}
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except InputError:
        raise
    except Exception as error:  # a damaged pickle raises anything
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"{path} is damaged or no checkpoint of torch ({why})") from None
    if big_endian:
        tensors = {name: tensor.byteswap() for name, tensor in tensors.items()}
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


# The unpickler written in Python: C's allocates tens of gigabytes for a few bytes (LONG_BINPUT).
class _Unpickler(pickle._Unpickler):
    def __init__(self, path: Path, content: Any):
        super().__init__(content, encoding="utf-8")  # also decodes strings of Python 2
        self.path = path
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        # A pickle can call what this returns and, by the opcode BUILD, set its attributes. So it
        # returns strings, which allow neither, and new functions each time.
        if (module, name) == ("collections", "OrderedDict"):
            return _Named
        if (module, name) == ("torch", "Size"):
            return tuple
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and name in _DTYPES:
            return name
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, grad=False, hooks=None, metadata=None: (
                _tensor(storage, storage.dtype, offset, shape, strides, metadata)
            )
        if (module, name) == ("torch._utils", "_rebuild_tensor_v3"):
            return lambda storage, offset, shape, strides, grad, hooks, dtype, metadata=None: (
                _tensor(storage, dtype, offset, shape, strides, metadata)
            )
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, grad, hooks: data
        raise InputError(
            f"{self.path} holds {module}.{name}: code or a whole pickled object, which is not "
            f"read; save its state_dict instead"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _location, count, *view = pid
        # Only very old versions of torch wrote storages that are parts of others.
        if kind != "storage" or dtype not in _DTYPES or count < 0 or view not in ([], [None]):
            raise ValueError(f"unknown storage {pid!r}")
        storage = _Storage(str(key), dtype, int(count))
        self.storages[storage.key] = storage
        return storage


def _tensor(
    storage: _Storage,
    dtype: str,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    metadata: Any,
) -> _Tensor:
    if metadata:  # a conjugate or a negative view, still to be computed
        raise ValueError(f"tensors with {metadata} are not supported")
    return _Tensor(storage, dtype, offset, tuple(shape), tuple(strides))


def _zip(path: Path, content: mmap.mmap) -> tuple[Any, Locate, bool]:
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
    tops = [match[1] for name in members if (match := re.fullmatch(r"([^/]+)/data\.pkl", name))]
    if len(tops) != 1:
        raise ValueError("no data.pkl")

    def member(name: str) -> memoryview:
        info = members[f"{tops[0]}/{name}"]
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed")
        # Read the lengths from the local header: its padding is not in the zip's directory.
        local_header = content[info.header_offset : info.header_offset + 30]
        signature, name_length, extra_length = struct.unpack("<4s22xHH", local_header)
        start = info.header_offset + 30 + name_length + extra_length
        data = memoryview(content)[start : start + info.file_size]
        if signature != _ZIP or len(data) != info.file_size:
            raise ValueError(f"{name} is cut off")
        return data

    unpickler = _Unpickler(path, io.BytesIO(member("data.pkl")))
    byteorder = f"{tops[0]}/byteorder" in members and bytes(member("byteorder"))
    return unpickler.load(), lambda storage: member(f"data/{storage.key}"), byteorder == b"big"


def _stream(path: Path, content: mmap.mmap) -> tuple[Any, Locate, bool]:
    if _Unpickler(path, content).load() != _MAGIC or _Unpickler(path, content).load() != _PROTOCOL:
        raise ValueError("no magic number")
    _Unpickler(path, content).load()  # the system's sizes of C types; torch reads past them too
    unpickler = _Unpickler(path, content)
    value = unpickler.load()
    pieces: dict[str, memoryview] = {}
    for key in _Unpickler(path, content).load():
        storage = unpickler.storages[str(key)]
        (count,) = struct.unpack("<q", content.read(8))
        size = storage.elements * _DTYPES[storage.dtype].itemsize
        start = content.tell()
        pieces[storage.key] = memoryview(content)[start : start + size]
        if count != storage.elements or len(pieces[storage.key]) != size:
            raise ValueError(f"storage {key} is cut off")
        content.seek(start + size)
    return value, lambda storage: pieces[storage.key], False


def _state_dict(path: Path, value: Any) -> dict[str, _Tensor]:
    """Return the state dict in a file's object, chosen as in `read`."""
    candidates: list[tuple[bool, str, dict[str, _Tensor]]] = []
    waiting: list[tuple[str, Any]] = [("", value)]
    seen = set()  # a pickle can hold a dict that holds itself
    while waiting:
        name, value = waiting.pop()
        if id(value) in seen or not isinstance(value, dict | list):
            continue
        seen.add(id(value))
        inner = dict(value if isinstance(value, dict) else enumerate(value))
        waiting += [(f"{name}/{key}".lstrip("/"), entry) for key, entry in inner.items()]
        tensors = {key: entry for key, entry in inner.items() if isinstance(entry, _Tensor)}
        if tensors and all(isinstance(key, str) for key in tensors):
            candidates.append((name.split("/")[-1] in _WRAPPERS, name, tensors))
    if not candidates:
        raise InputError(f"{path} holds no dict of tensors; save a model's state_dict")
    rank = max((wrapper, len(tensors)) for wrapper, _, tensors in candidates)
    best = [entry for entry in candidates if (entry[0], len(entry[2])) == rank]
    if len(best) > 1:
        names = " and ".join(sorted(name for _, name, _ in best))
        raise InputError(
            f"{path} holds {names}, dicts of {rank[1]} tensors each; save one of them by itself"
        )
    return best[0][2]


def _view(tensor: _Tensor, locate: Locate) -> np.ndarray:
    """Return the tensor as an array over its storage.

    NumPy refuses an array that would leave its storage.
    """
    dtype, storage = _DTYPES[tensor.dtype], tensor.storage
    size = storage.elements * _DTYPES[storage.dtype].itemsize
    data = locate(storage)
    if len(data) < size:
        raise ValueError(f"storage {storage.key} is cut off")
    if 0 in tensor.shape:  # an empty tensor's offset and strides may be anything
        return np.empty(tensor.shape, dtype)
    strides = [stride * dtype.itemsize for stride in tensor.strides]
    return np.ndarray(tensor.shape, dtype, data[:size], tensor.offset * dtype.itemsize, strides)
