"""Convert embeddings from and to MMRec's and Ducho's files.

MMRec has one `.npy`, Ducho a folder with one `.npy` per item.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.core import files, storage
from mmjax.core.errors import InputError
from mmjax.store.create import create
from mmjax.store.read import Store


def export_npy(store: Store, path: str | Path, *, overwrite: bool = False) -> None:
    """Write one array [I, F] in item order, as MMRec reads it.

    Absent rows are zeros.

    Raises:
      InputError: the file is there already, or the store is damaged.
    """
    path = storage.local(path)
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already; choose another name or pass --overwrite")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        out = np.lib.format.open_memmap(partial, "w+", _plain(store.dtype), store.shape)
        for start, rows, _ in store.blocks():
            out[start : start + len(rows)] = rows
        out.flush()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def export_folder(store: Store, folder: str | Path, *, overwrite: bool = False) -> None:
    """Write `<id>.npy` for every present item, as Ducho does.

    Each array has the shape (1, F).

    Raises:
      InputError: the folder is not empty, an id cannot name a file, or the store is damaged.
    """
    item_ids = store.item_ids()
    with files.atomic_folder(folder, overwrite=overwrite) as partial:
        for start, rows, present in store.blocks():
            for i in np.flatnonzero(present):
                name = item_ids[start + i]
                if "/" in name or "\0" in name or len(name.encode()) > 250:
                    raise InputError(f"item id {name!r} cannot name a file; use export_npy")
                np.save(partial / f"{name}.npy", rows[i : i + 1].astype(_plain(store.dtype)))


def import_npy(path: str | Path, url: str | Path, item_ids: Sequence[str], **about: Any) -> None:
    """Create a store from an array [I, F] in item order.

    A row of zeros counts as an absent item. `about` goes to `create`: what the features are,
    `dtype`, `overwrite`.

    Raises:
      InputError: no such array, another item count, a NaN, or what `create` raises.
    """
    array = _load(storage.local(path))
    if array.ndim != 2:
        raise InputError(f"{path} has shape {array.shape}; one row of features an item is needed")
    if len(array) != len(item_ids):
        raise InputError(
            f"{path} has {len(array)} rows but the dataset {len(item_ids)} items, so rows would "
            "be misaligned; give the array of this dataset"
        )
    dtype = about.pop("dtype", _float(array.dtype))
    with create(url, shape=array.shape, dtype=dtype, item_ids=item_ids, **about) as writer:
        for start, stop in writer.store.spans():
            rows = np.asarray(array[start:stop])
            writer.write(start, rows, np.any(rows, axis=1))


def import_folder(
    folder: str | Path, url: str | Path, item_ids: Sequence[str], **about: Any
) -> None:
    """Create a store from a folder of `<id>.npy` files.

    Each array is (1, F) or (F,). Items without a file are absent. `about` goes to `create`: what
    the features are, `dtype`, `overwrite`.

    Raises:
      InputError: a file of no item, a file that is not a vector of the same width, no file at all,
        a NaN, or what `create` raises.
    """
    folder = storage.local(folder)
    names = {path.name.removesuffix(".npy") for path in folder.glob("*.npy")}
    if not names:
        raise InputError(f"{folder} holds no .npy file")
    unknown = sorted(names.difference(item_ids))
    if unknown:
        raise InputError(
            f"{folder}/{unknown[0]}.npy belongs to no item of the dataset (nor do "
            f"{len(unknown) - 1} others of {len(names)}); give the folder of this dataset"
        )
    first = next(name for name in item_ids if name in names)
    example = _load(folder / f"{first}.npy")
    width = example.size
    dtype = about.pop("dtype", _float(example.dtype))
    shape = (len(item_ids), width)
    with create(url, shape=shape, dtype=dtype, item_ids=item_ids, **about) as writer:
        for start, stop in writer.store.spans():
            rows = np.zeros((stop - start, width), example.dtype)
            present = np.array([name in names for name in item_ids[start:stop]])
            for i in np.flatnonzero(present).tolist():
                path = folder / f"{item_ids[start + i]}.npy"
                vector = _load(path)
                if vector.shape not in {(width,), (1, width)}:
                    raise InputError(
                        f"{path} has shape {vector.shape}, {first}.npy has {example.shape}: one "
                        "vector of the same width an item is needed"
                    )
                rows[i] = vector.reshape(width)
            writer.write(start, rows, present)


def _load(path: Path) -> np.ndarray:
    """Memory-map a numeric `.npy` file; refuse a pickle inside."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is not a .npy array of numbers: {error}") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        raise InputError(f"{path} is not a .npy array of numbers")
    return array


def _float(dtype: np.dtype) -> np.dtype:
    """Return the dtype in which a store keeps such numbers.

    Floats of up to 8 bytes keep their dtype. Others become float32, such as attributes as 0 and 1.
    """
    return dtype if dtype.kind == "f" and dtype.itemsize <= 8 else np.dtype(np.float32)


def _plain(dtype: np.dtype) -> np.dtype:
    """Return a dtype that every NumPy knows.

    `.npy` has no bfloat16; float32 holds it exactly.
    """
    return dtype if dtype.kind == "f" else np.dtype(np.float32)
