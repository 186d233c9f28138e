"""What there is to encode: one row an item, or a review of a user and an item, with its inputs.

Inputs come from a prepared dataset, or as Ducho takes them: a folder of files named by item, and
a table with a text column.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from mmjax.core import storage
from mmjax.core.errors import InputError
from mmjax.data.dataset import Dataset
from mmjax.data.tables import read_table

FIELDS = ("title", "text")
SUFFIXES = {
    "image": (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    "audio": (".wav", ".flac", ".ogg", ".mp3"),
}
# The field's names of modalities, and what the encoders call the same.
MODALITIES = {"visual": "image", "textual": "text", "audio": "audio"}
SEPARATOR = "__"  # between user and item in the id of a review, as in Ducho's file names


@dataclass(frozen=True)
class Inputs:
    """Row ids [n] and what each modality offers of them [n]: a path, a text, "" for nothing."""

    name: str
    ids: list[str]
    values: dict[str, list[str]]
    about: dict[str, Any] = field(default_factory=dict)  # into the manifest

    def of(self, modality: str) -> list[Any]:
        """Inputs [n] of a modality, "" where there is none.

        Of "image_text" these are pairs, and both must be there; of other such names, as prompts
        have ("image_title_description"), tuples whose words may be empty.

        Raises:
          InputError: not one row has it.
        """
        parts = modality.split("_")
        if len(parts) == 1:
            found: list[Any] = self.values.get(modality, [])
        else:
            needed = len(parts) if modality == "image_text" else 1
            nothing = [""] * len(self.ids)
            columns = [self.values.get(part, nothing) for part in parts]
            found = [row if all(row[:needed]) else "" for row in zip(*columns, strict=True)]
        if not any(found):
            raise InputError(f"no item of {self.name} has {modality} to encode")
        return found

    def digest(self, modality: str) -> str:
        """Tells other inputs of the same rows: the texts themselves, the names of files."""
        digest = hashlib.sha256()
        for value in self.of(modality):
            parts = value if isinstance(value, tuple) else (value,)
            for kind, part in zip(modality.split("_"), parts, strict=False):
                named = kind in ("image", "audio")
                digest.update((Path(part).name if named else part).encode() + b"\0")
        return digest.hexdigest()[:16]


def of_dataset(dataset: Dataset, fields: Sequence[str] = ("text",)) -> Inputs:
    """The items of a prepared dataset; its text `fields` are joined by line breaks.

    Raises:
      InputError: an unknown field.
    """
    unknown = [name for name in fields if name not in FIELDS]
    if unknown or not fields:
        raise InputError(f"fields {','.join(fields)!r} must be of {', '.join(FIELDS)}")
    columns = [{"title": dataset.titles, "text": dataset.texts}[name] for name in fields]
    texts = [
        "\n".join(filter(None, (part.strip() for part in parts)))
        for parts in zip(*columns, strict=True)
    ]
    values = {"image": dataset.images, "text": texts, "audio": dataset.audios}
    values |= {"title": dataset.titles, "description": dataset.texts}
    about = {"dataset": dataset.name, "fields": list(fields)}
    return Inputs(f"dataset {dataset.name}", dataset.item_ids, values, about)


def of_files(folder: str | Path, modality: str) -> Inputs:
    """The files of a folder that are images (or audio), each named by its item, sorted by name.

    An id is the name up to its last dot; Ducho cuts at the first, so that `a.b.jpg` and `a.c.jpg`
    meet there.

    Raises:
      InputError: no such folder, no such file in it, or two of one item.
    """
    folder = storage.local(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder of {modality} files")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES[modality])
    if not paths:
        raise InputError(f"{folder} holds no {modality} file ({', '.join(SUFFIXES[modality])})")
    ids = [path.stem for path in paths]
    twice = next((name for name, after in pairwise(ids) if name == after), None)
    if twice is not None:
        raise InputError(f"{folder} has two files of item {twice!r}; keep one")
    return Inputs(str(folder), ids, {modality: [str(path) for path in paths]}, {"dataset": ""})


def of_table(path: str | Path, keys: Sequence[str], text: str) -> Inputs:
    """The rows of a table (TSV, CSV, Parquet): ids from the `keys` columns, texts from `text`.

    One key is an item, two are a user and an item, and the id of their review is `user__item`.

    Raises:
      InputError: no such table or column, or an id that repeats.
    """
    roles = {f"id from {key}": key for key in keys}
    table = read_table(storage.local(path), {**roles, "text": text})
    columns = [table.column(role).to_pylist() for role in roles]
    ids = [SEPARATOR.join(parts) for parts in zip(*columns, strict=True)]
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        twice = next(name for name in ids if name in seen or seen.add(name))
        raise InputError(f"{path} has two rows of {', '.join(keys)} {twice!r}; keep one")
    texts = [value.strip() for value in table.column("text").to_pylist()]
    return Inputs(str(path), ids, {"text": texts}, {"dataset": "", "fields": [text]})


def join(left: Inputs, right: Inputs) -> Inputs:
    """Rows that either has, paired by id: images of a folder and texts of a table, say.

    Ducho pairs them by their sorted positions instead, so that one missing image shifts all.
    """
    known = set(left.ids)
    ids = left.ids + [key for key in right.ids if key not in known]
    values = {}
    for one in (left, right):
        at = {key: row for row, key in enumerate(one.ids)}
        for modality, found in one.values.items():
            values[modality] = [found[at[key]] if key in at else "" for key in ids]
    return Inputs(f"{left.name} and {right.name}", ids, values, {**left.about, **right.about})
