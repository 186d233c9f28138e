"""Rows to encode: items, or reviews of a user and an item.

Inputs come from a prepared dataset, or in Ducho's form: a folder of files named by item, and a
table with a text column.
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
# Names of modalities in the literature -> names in the encoders.
MODALITIES = {"visual": "image", "textual": "text", "audio": "audio"}
SEPARATOR = "__"  # between user and item in the id of a review, as in Ducho's file names


@dataclass(frozen=True)
class Inputs:
    """Row ids [n] and the inputs [n] of each modality.

    An input is a path or a text, "" where there is none.
    """

    name: str
    ids: list[str]
    values: dict[str, list[str]]
    about: dict[str, Any] = field(default_factory=dict)  # into the manifest

    def of(self, modality: str) -> list[Any]:
        """Return the inputs [n] of a modality, "" where there is none.

        For "image_text" they are pairs, and both parts must be there. For other compound names, as
        prompts have ("image_title_description"), they are tuples whose texts may be empty.

        Raises:
          InputError: not one row has the modality.
        """
        parts = modality.split("_")
        if len(parts) == 1:
            inputs: list[Any] = self.values.get(modality, [])
        else:
            needed = len(parts) if modality == "image_text" else 1
            empty = [""] * len(self.ids)
            columns = [self.values.get(part, empty) for part in parts]
            inputs = [row if all(row[:needed]) else "" for row in zip(*columns, strict=True)]
        if not any(inputs):
            raise InputError(f"no item of {self.name} has {modality} to encode")
        return inputs

    def digest(self, modality: str) -> str:
        """Hash the inputs of a modality, to detect changed inputs.

        The hash covers the texts themselves and the names of files.
        """
        digest = hashlib.sha256()
        for value in self.of(modality):
            parts = value if isinstance(value, tuple) else (value,)
            for kind, part in zip(modality.split("_"), parts, strict=False):
                is_file = kind in ("image", "audio")
                digest.update((Path(part).name if is_file else part).encode() + b"\0")
        return digest.hexdigest()[:16]


def of_dataset(dataset: Dataset, fields: Sequence[str] = ("text",)) -> Inputs:
    """Return the items of a prepared dataset as inputs.

    The text `fields` of an item are joined by line breaks.

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
    metadata = {"dataset": dataset.name, "fields": list(fields)}
    return Inputs(f"dataset {dataset.name}", dataset.item_ids, values, metadata)


def of_files(folder: str | Path, modality: str) -> Inputs:
    """Return the images or audio files of a folder as inputs.

    Each file is named by its item; rows are sorted by name. An id is the name up to its last dot;
    Ducho cuts at the first dot, so that `a.b.jpg` and `a.c.jpg` collide there.

    Raises:
      InputError: no such folder, no such file in it, or two files of one item.
    """
    folder = storage.local(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder of {modality} files")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES[modality])
    if not paths:
        raise InputError(f"{folder} holds no {modality} file ({', '.join(SUFFIXES[modality])})")
    ids = [path.stem for path in paths]
    duplicate = next((name for name, after in pairwise(ids) if name == after), None)
    if duplicate is not None:
        raise InputError(f"{folder} has two files of item {duplicate!r}; keep one")
    return Inputs(str(folder), ids, {modality: [str(path) for path in paths]}, {"dataset": ""})


def of_table(path: str | Path, keys: Sequence[str], text: str) -> Inputs:
    """Read the rows of a table (TSV, CSV, Parquet) as inputs.

    Ids come from the `keys` columns, texts from the `text` column. One key is an item; two keys are
    a user and an item, and the id of their review is `user__item`.

    Raises:
      InputError: no such table or column, or an id that repeats.
    """
    roles = {f"id from {key}": key for key in keys}
    table = read_table(storage.local(path), {**roles, "text": text})
    columns = [table.column(role).to_pylist() for role in roles]
    ids = [SEPARATOR.join(parts) for parts in zip(*columns, strict=True)]
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise InputError(f"{path} has two rows of {', '.join(keys)} {name!r}; keep one")
        seen.add(name)
    texts = [value.strip() for value in table.column("text").to_pylist()]
    return Inputs(str(path), ids, {"text": texts}, {"dataset": "", "fields": [text]})


def join(left: Inputs, right: Inputs) -> Inputs:
    """Join the rows of two inputs by id, keeping all rows.

    An example is the images of a folder and the texts of a table. Ducho pairs rows by their sorted
    positions instead, so that one missing image shifts all others.
    """
    left_ids = set(left.ids)
    ids = left.ids + [key for key in right.ids if key not in left_ids]
    values = {}
    for source in (left, right):
        row_of = {key: row for row, key in enumerate(source.ids)}
        for modality, column in source.values.items():
            values[modality] = [column[row_of[key]] if key in row_of else "" for key in ids]
    return Inputs(f"{left.name} and {right.name}", ids, values, {**left.about, **right.about})
