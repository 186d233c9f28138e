"""Dataset x encoder to a store: every item's row, in item order, and who has none.

A tower's rows stream into the store chunk by chunk: within a chunk the encoder may take items in
any order (texts of like length together), chunks are finished one after the other. A fitted
encoder sees the whole catalogue first.
"""

import difflib
import functools
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jax.sharding import NamedSharding

import mmjax.encoders
from mmjax import store
from mmjax.data.dataset import Dataset
from mmjax.encoders.core import Batch, Batches, Encode, Fitted, Rows, Tower, stream
from mmjax.errors import InputError
from mmjax.progress import Progress

FIELDS = ("title", "text")


@dataclass
class Summary:
    """What became of an extraction; `failed` lists (item id, input, reason)."""

    store: str
    items: int
    width: int = 0
    present: int = 0
    seconds: float = 0.0
    failed: list[tuple[str, str, str]] = field(default_factory=list)


def find_encoder(name: str) -> ModuleType:
    """The module of an encoder: a file of `mmjax.encoders`, or a dotted path elsewhere.

    Raises:
      InputError: there is none; the sentence lists those there are.
    """
    path = name if "." in name else f"mmjax.encoders.{name}"
    try:
        found = importlib.util.find_spec(path)
    except (ModuleNotFoundError, ValueError):
        found = None
    module = importlib.import_module(path) if found else None
    if module is None or not hasattr(module, "load"):
        inside = [module.name for module in pkgutil.iter_modules(mmjax.encoders.__path__)]
        names = [
            inner
            for inner in inside
            if hasattr(importlib.import_module(f"mmjax.encoders.{inner}"), "load")
        ]
        close = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise InputError(f"there is no encoder {name!r}; {hint}there are {', '.join(names)}")
    return module


def load_encoder(name: str, options: dict[str, Any]) -> Tower | Fitted:
    """Loads an encoder with those options that are not None.

    Raises:
      InputError: no such encoder, or an option it does not have.
    """
    load = find_encoder(name).load
    known = list(inspect.signature(load).parameters)
    given = {key: value for key, value in options.items() if value is not None}
    for key in given:
        if key not in known:
            raise InputError(f"encoder {name} has no option {key!r}; it has {', '.join(known)}")
    return load(**given)


def inputs_of(dataset: Dataset, modality: str, fields: Sequence[str] = ("text",)) -> list[str]:
    """What an encoder of `modality` reads of each item [I]: a path, or its text fields joined.

    Raises:
      InputError: an unknown field, or not one item that has the modality.
    """
    if modality == "image":
        inputs = dataset.images
    else:
        unknown = [name for name in fields if name not in FIELDS]
        if unknown or not fields:
            raise InputError(f"fields {','.join(fields)!r} must be of {', '.join(FIELDS)}")
        columns = [{"title": dataset.titles, "text": dataset.texts}[name] for name in fields]
        inputs = [
            "\n".join(filter(None, (part.strip() for part in parts)))
            for parts in zip(*columns, strict=True)
        ]
    if not any(inputs):
        raise InputError(f"no item of dataset {dataset.name} has {modality} to encode")
    return inputs


def extract(
    dataset: Dataset,
    encoder: str,
    out: str | Path,
    *,
    options: dict[str, Any] | None = None,
    fields: Sequence[str] = ("text",),
    batch: int = 32,
    dtype: str = "float32",
    on_error: str = "stop",
    rows: NamedSharding | None = None,
    overwrite: bool = False,
) -> Summary:
    """Encodes every item that has the modality into the store `out`.

    Args:
      encoder: module name, and `options` for its `load`.
      fields: of which a text is made, joined by line breaks.
      batch: items a device program takes, rounded up to divide over the devices of `rows`.
      dtype: of the store, and of the computation where the encoder has the choice.
      on_error: "stop" at an input that cannot be read, or "skip" it: absent, and listed.
      rows: sharding of a batch over devices.

    Raises:
      InputError: anything the user can mend; nothing of the store is left then.
    """
    if on_error not in ("stop", "skip"):
        raise InputError(f"on_error is stop or skip, not {on_error!r}")
    if batch < 1:
        raise InputError(f"batch is at least 1, not {batch}")
    store.refuse_existing(out, overwrite=overwrite)
    module = find_encoder(encoder)
    options = dict(options or {})
    if "dtype" in inspect.signature(module.load).parameters:
        options["dtype"] = dtype
    loaded = load_encoder(encoder, options)
    inputs = inputs_of(dataset, loaded.modality, fields)
    devices = 1 if rows is None else rows.mesh.shape["data"]
    size = -(-batch // devices) * devices

    about = {**loaded.about, "dataset": dataset.name}
    if loaded.modality == "text":
        about["fields"] = list(fields)
    create = functools.partial(
        store.create, out, item_ids=dataset.item_ids, dtype=dtype, overwrite=overwrite, **about
    )
    summary = Summary(str(out), dataset.n_items)

    def failed(item: int, why: str) -> None:
        if on_error == "stop":
            raise InputError(
                f"{inputs[item]} of item {dataset.item_ids[item]!r} cannot be read ({why}); "
                "mend it or pass --on_error=skip"
            )
        summary.failed.append((dataset.item_ids[item], inputs[item], why))
        progress.add(1)

    with Progress(encoder, sum(map(bool, inputs))) as progress:
        encode = functools.partial(_encode, inputs, size, rows, failed, progress)
        fill = _stream_into if isinstance(loaded, Tower) else _fit_into
        summary.width, summary.present = fill(create, loaded, inputs, encode)
        summary.seconds = progress.seconds
    return summary


def _encode(
    inputs: Sequence[str],
    size: int,
    rows: NamedSharding | None,
    failed: Callable[[int, str], None],
    progress: Progress,
    groups: Iterable[np.ndarray],
    batches: Batches,
    encode: Encode,
    params: Any,
) -> Rows:
    """Encodes groups of items one after the other; the pipeline stays full between them."""

    def named() -> Iterator[Batch]:
        for items in groups:
            for batch in batches([inputs[i] for i in items], size):
                why = {int(items[i]): reason for i, reason in batch.failed.items()}
                yield batch._replace(rows=items[batch.rows], failed=why)

    for items, values in stream(named(), encode, params, rows, failed):
        yield items, values
        progress.add(len(items))


def _stream_into(
    create: Callable[..., store.Writer],
    tower: Tower,
    inputs: Sequence[str],
    encode: Callable[..., Rows],
) -> tuple[int, int]:
    """Fills the store chunk by chunk; width and number present."""
    total = 0
    with create(shape=(len(inputs), tower.width)) as writer:
        spans = list(writer.store.spans())
        groups = (np.array([i for i in range(*span) if inputs[i]], int) for span in spans)
        encoded = encode(groups, tower.batches, tower.encode, tower.params)
        items, values = next(encoded, (None, None))
        for start, stop in spans:
            features = np.zeros((stop - start, tower.width), np.float32)
            present = np.zeros(stop - start, bool)
            while items is not None and items[0] < stop:  # a batch never crosses two chunks
                features[items - start], present[items - start] = values, True
                items, values = next(encoded, (None, None))
            writer.write(start, features, present)
            total += int(present.sum())
        _some(total, tower.modality)
    return tower.width, total


def _fit_into(
    create: Callable[..., store.Writer],
    encoder: Fitted,
    inputs: Sequence[str],
    encode: Callable[..., Rows],
) -> tuple[int, int]:
    """Fits on the items that have the modality and writes them; width and number present."""
    items = np.flatnonzero([bool(value) for value in inputs])

    def run(batches: Batches, program: Encode, params: Any) -> Rows:
        for found, values in encode([items], batches, program, params):
            yield np.searchsorted(items, found), values

    fitted = encoder.fit([inputs[i] for i in items], run)
    features = np.zeros((len(inputs), fitted.shape[1]), np.float32)
    features[items] = fitted
    present = features.any(axis=1)
    _some(present.sum(), encoder.modality)
    with create(shape=features.shape) as writer:
        for start, stop in writer.store.spans():
            writer.write(start, features[start:stop], present[start:stop])
    return features.shape[1], int(present.sum())


def _some(count: int, modality: str) -> None:
    if not count:
        raise InputError(f"not one {modality} of the dataset could be encoded; nothing is written")
