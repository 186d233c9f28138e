"""Create a store, or resume one that a kill left unfinished."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from mmjax import __version__
from mmjax.core.errors import InputError
from mmjax.core.ids import hash_ids
from mmjax.store import layout
from mmjax.store.read import Store
from mmjax.store.write import Writer

ABOUT = ("encoder", "revision", "preprocessing", "layer", "pooling")


def create(
    url: str | Path,
    *,
    shape: tuple[int, int],
    dtype: Any,
    item_ids: Sequence[str],
    chunk_rows: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    joining: bool = False,
    context: ts.Context | None = None,
    **about: Any,
) -> Writer:
    """Create or resume an unfinished store of `shape` [I, F].

    The rows are written through the returned Writer.

    Args:
      chunk_rows: rows per chunk; by default about 4 MiB of them.
      overwrite: replace an existing store; it is deleted at once.
      resume: continue a store that was begun with the very same arguments. The Writer knows which
        chunks it has, all of them if it is finished. After an exception the store keeps its chunks.
      joining: write chunks of a store that another process of this program has begun, with the very
        same arguments, and will finish. That process must begin no chunk before all have joined.
      context: TensorStore context, for credentials, caches and concurrency.
      about: JSON values for the manifest; `encoder`, `revision`, `preprocessing`, `layer` and
        `pooling` are keys of their own, the rest becomes `settings`.

    Raises:
      InputError: something else is there already, or a store begun with other arguments; another
        process is writing it; the dtype is not a float; the item count differs.
    """
    name = str(np.dtype(dtype))
    if name not in layout.DTYPES:
        raise InputError(
            f"{url} cannot hold {name}; embeddings are one of {', '.join(layout.DTYPES)}"
        )
    count, width = (int(size) for size in shape)
    if count != len(item_ids):
        raise InputError(f"{url}: {count} rows of features but {len(item_ids)} items")
    if count < 1 or width < 1:
        raise InputError(f"{url}: features of shape [{count}, {width}] are empty")
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
    manifest = json.loads(json.dumps(manifest, allow_nan=False))  # as it will be read back
    kv = layout.kvstore(url, context)
    begun = _begun(url, kv) if joining or (resume and not overwrite) else None
    if joining:
        if begun is None:
            raise InputError(
                f"{url}: the store that the first process has begun is not there; give a folder or "
                "URL that all processes share"
            )
        _refuse_other(url, begun, manifest)
        arrays: Iterable[ts.TensorStore]
        arrays = (layout.zarr(kv, part, context) for part in layout.ARRAYS)
        return Writer(Store(str(url), begun, kv, *arrays), item_ids, keep=True, joined=True)
    if begun is None:
        refuse_existing(url, overwrite=overwrite, context=context)
        lock = _lock(url, kv)
        # The manifest is written first: from now on no older store of this name can be opened.
        layout.write_manifest(kv, manifest)
        layout.delete_contents(kv)
        rows = manifest["chunk_rows"]
        arrays = (
            layout.zarr(kv, "features/", context, name, (count, width), (rows, width)),
            layout.zarr(kv, "present/", context, "bool", (count,), (rows,)),
        )
        layout.write(kv, "items.txt", ("\n".join(item_ids) + "\n").encode())
        return Writer(Store(str(url), manifest, kv, *arrays), item_ids, lock, keep=resume)
    _refuse_other(url, begun, manifest)
    lock = _lock(url, kv)
    if layout.read(url, kv, "items.txt") is None:  # killed before it was written
        layout.write(kv, "items.txt", ("\n".join(item_ids) + "\n").encode())
        begun = {**begun, "complete": False}
    try:
        arrays = tuple(layout.zarr(kv, part, context) for part in layout.ARRAYS)
    except ValueError:  # killed between manifest and arrays: nothing to resume
        if lock is not None:
            lock.close()
        return create(
            url,
            shape=shape,
            dtype=dtype,
            item_ids=item_ids,
            chunk_rows=chunk_rows,
            overwrite=True,
            resume=True,
            context=context,
            **{key: manifest[key] for key in ABOUT},
            **about,
        )
    return Writer(Store(str(url), begun, kv, *arrays), item_ids, lock, keep=True)


def write_array(
    url: str | Path,
    features: np.ndarray,
    *,
    item_ids: Sequence[str],
    present: np.ndarray | None = None,
    **about: Any,
) -> None:
    """Write `features` [I, F] as a finished store.

    `about` and the errors are those of `create`.

    Args:
      present: bool [I]; by default all items.
    """
    if features.ndim != 2 or (present is not None and present.shape != features.shape[:1]):
        raise InputError(f"{url}: features must be [I, F] and present [I], not {features.shape}")
    dtype = about.pop("dtype", features.dtype)
    with create(url, shape=features.shape, dtype=dtype, item_ids=item_ids, **about) as writer:
        for start, stop in writer.store.spans():
            mask = np.ones(stop - start, bool) if present is None else present[start:stop]
            writer.write(start, features[start:stop], mask)


def refuse_existing(
    url: str | Path, *, overwrite: bool = False, context: ts.Context | None = None
) -> None:
    """Check that a store may be created here.

    Call it before the work that will fill the store.

    Raises:
      InputError: a store is there and `overwrite` is not set, or something else is there.
    """
    kv = layout.kvstore(url, context)
    if layout.read(url, kv, "manifest.json") is not None:
        if not overwrite:
            raise InputError(f"{url} exists already; choose another name or pass --overwrite")
    elif [key for key in kv.list().result() if key != layout.LOCK.encode()]:  # not ours to delete
        raise InputError(f"{url} holds files but no store; choose another name")


def _begun(url: str | Path, kv: ts.KvStore) -> dict[str, Any] | None:
    text = layout.read(url, kv, "manifest.json")
    try:
        return None if text is None else json.loads(text)
    except ValueError as error:
        raise InputError(f"{url}/manifest.json is not JSON: {error}") from None


def _refuse_other(url: str | Path, begun: dict[str, Any], manifest: dict[str, Any]) -> None:
    """Refuse a store that was begun with other options.

    Rows made in two ways must not be mixed in one store. The error names the first difference.
    """
    flat = [
        {**entry, **{f"settings.{key}": value for key, value in entry.get("settings", {}).items()}}
        for entry in (begun, manifest)
    ]
    for key in [key for key in {**flat[1], **flat[0]} if key not in ("complete", "settings")]:
        if key in ("content_hash", "digests", "outcome"):
            continue
        before, now = (entry.get(key) for entry in flat)
        if before != now:
            raise InputError(
                f"{url} was begun with {key} {before!r}, not {now!r}; give the same options to go "
                "on with it, another name, or --overwrite"
            )


def _lock(url: str | Path, kv: ts.KvStore) -> layout.Lock | None:
    """Lock a store on a file system for this process.

    The system releases the lock when the process dies. Buckets have no locks: there the last
    process to begin takes a store over (see `Writer`).
    """
    spec = kv.spec().to_json()
    if spec["driver"] != "file":
        return None
    try:
        return layout.Lock(spec["path"])
    except BlockingIOError:
        raise InputError(
            f"another process is writing {url}; wait for it, or stop it first"
        ) from None
    except OSError as error:
        raise InputError(f"{url} cannot be written ({error.strerror})") from None
