"""Fusion of several embeddings of the same rows into one.

The ways are those of Ducho for the two embeddings of a dual encoder.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mmjax import store
from mmjax.core.errors import InputError

WAYS = ("concat", "sum", "mul", "mean")


def fuse(
    urls: Sequence[str | Path], how: str, out: str | Path, *, overwrite: bool = False
) -> store.Store:
    """Fuse stores of the same rows into the store `out`.

    The stores are read chunk by chunk. A row is present where it is present in all of them.
    `concat` puts the rows side by side; `sum`, `mul` and `mean` work element by element and need
    one width. These are computed in float32.

    Returns:
      The store `out`.

    Raises:
      InputError: an unknown way, fewer than two stores, or stores of different rows or widths.
    """
    if how not in WAYS:
        raise InputError(f"fusion {how!r} is none of {', '.join(WAYS)}")
    if len(urls) < 2:
        raise InputError("a fusion takes two stores or more")
    sources = [store.open_store(url) for url in urls]
    first = sources[0]
    for other in sources[1:]:
        if other.manifest["item_hash"] != first.manifest["item_hash"]:
            raise InputError(f"{other.url} and {first.url} are of different rows, or other orders")
        if how != "concat" and other.shape != first.shape:
            raise InputError(
                f"{how} needs one width, but {first.url} is {first.shape[1]} wide and {other.url} "
                f"{other.shape[1]}; fuse them by concat"
            )
    width = sum(source.shape[1] for source in sources) if how == "concat" else first.shape[1]
    with store.create(
        out,
        shape=(first.shape[0], width),
        dtype=first.dtype,
        item_ids=first.item_ids(),
        chunk_rows=first.manifest["chunk_rows"],
        overwrite=overwrite,
        resume=True,
        encoder=" + ".join(source.manifest["encoder"] for source in sources),
        layer=" + ".join(source.manifest["layer"] for source in sources),
        fusion=how,
        sources=[source.manifest["content_hash"] for source in sources],
    ) as writer:
        for start, stop in writer.store.spans():
            if start not in writer.done:
                rows, present = zip(*(s.block(start, stop) for s in sources), strict=True)
                writer.write(start, _together(rows, how), np.logical_and.reduce(present))
    return store.open_store(out)


def _together(rows: Sequence[np.ndarray], how: str) -> np.ndarray:
    """Combine rows [n, F] of each store into [n, F or ΣF]."""
    if how == "concat":
        return np.concatenate(rows, axis=1)
    stack = np.stack([part.astype(np.float32) for part in rows])
    ways: dict[str, Callable] = {"sum": stack.sum, "mul": stack.prod, "mean": stack.mean}
    return ways[how](axis=0)
