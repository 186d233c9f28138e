"""Beginning a store, or going on with one that a kill left unfinished."""

import json
from collections.abc import Sequence
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
    """Starts an unfinished store of `shape` [I, F]; its rows come through the returned Writer.

    Args:
      chunk_rows: rows a chunk; about 4 MiB worth of them unless given.
      overwrite: replace a store that is there already; it is gone from now on.
      resume: go on with a store that was begun with the very same arguments: the Writer knows
        which chunks it has, all of them if it is finished. An exception then leaves what there is.
      joining: write chunks of a store that another process of this program has begun, with the
        very same arguments, and will finish; it must have begun no chunk before all have joined.
      context: TensorStore context, for credentials, caches and concurrency.
      about: JSON values for the manifest; `encoder`, `revision`, `preprocessing`, `layer` and
        `pooling` have a place of their own, the rest becomes `settings`.

    Raises:
      InputError: something else is there already, or a store begun with other arguments; another
        process is writing it; a dtype that is no float; another item count.
    """
    name = str(np.dtype(dtype))
    if name not in layout.DTYPES:
        raise InputError(
            f"{url} cannot hold {name}; embeddings are one of {', '.join(layout.DTYPES)}"
        )
    count, width = (int(n) for n in shape)
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
        arrays = (layout.zarr(kv, part, context) for part in layout.ARRAYS)
        return Writer(Store(str(url), begun, kv, *arrays), item_ids, keep=True, joined=True)
    if begun is None:
        refuse_existing(url, overwrite=overwrite, context=context)
        lock = _lock(url, kv)
        # The manifest goes first: from here on an older store under this name cannot be opened.
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
    except ValueError:  # killed between the manifest and the arrays: nothing to go on with
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
    """Writes `features` [I, F] as a finished store; `about` and the errors are those of `create`.

    Args:
      present: bool [I]; every item unless given.
    """
    if features.ndim != 2 or (present is not None and present.shape != features.shape[:1]):
        raise InputError(f"{url}: features must be [I, F] and present [I], not {features.shape}")
    dtype = about.pop("dtype", features.dtype)
    with create(url, shape=features.shape, dtype=dtype, item_ids=item_ids, **about) as writer:
        for start, stop in writer.store.spans():
            there = np.ones(stop - start, bool) if present is None else present[start:stop]
            writer.write(start, features[start:stop], there)


def refuse_existing(
    url: str | Path, *, overwrite: bool = False, context: ts.Context | None = None
) -> None:
    """Checks that a store may be created here, before the work that will fill it.

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
    """Rows made in two ways must not meet in one store; the first difference is named."""
    flat = [
        {**one, **{f"settings.{key}": value for key, value in one.get("settings", {}).items()}}
        for one in (begun, manifest)
    ]
    for key in [key for key in {**flat[1], **flat[0]} if key not in ("complete", "settings")]:
        if key in ("content_hash", "digests", "outcome"):
            continue
        before, now = (one.get(key) for one in flat)
        if before != now:
            raise InputError(
                f"{url} was begun with {key} {before!r}, not {now!r}; give the same options to go "
                "on with it, another name, or --overwrite"
            )


def _lock(url: str | Path, kv: ts.KvStore) -> layout.Lock | None:
    """Holds a store on a file system for this process; the system lets go when it dies.

    Buckets have no locks: there the last to begin takes a store over (see `Writer`).
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
