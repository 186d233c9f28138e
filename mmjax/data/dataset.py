"""Prepared dataset: users, items and split interactions as NumPy arrays.

A prepared folder holds

  dataset.json       name, statistics, hashes, and how it was made
  interactions.npz   {train,valid,test}_{user,item,rating,time}, uncompressed
  items.jsonl        one object per item, in index order: id, title, text, image, audio, attributes
  users.txt          one user id per line, in index order

`image` and `audio` are paths, absolute or relative to the folder. An empty `text`, `image` or
`audio` means that the item lacks that modality. All later stages address users and items by
position.
"""

import hashlib
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmjax.core import files, storage
from mmjax.core.errors import InputError
from mmjax.core.ids import hash_ids

FORMAT = 1
SPLITS = ("train", "valid", "test")


class Interactions(NamedTuple):
    """Parallel arrays over E interactions, sorted by user, then item."""

    user: np.ndarray  # [E] int32
    item: np.ndarray  # [E] int32
    rating: np.ndarray  # [E] float32, ones where the source has none
    time: np.ndarray  # [E] int64 seconds, zeros where the source has none


@dataclass(frozen=True)
class Dataset:
    """Prepared dataset: ids, item columns and three splits of interactions.

    U users, I items. The module's docstring describes its folder.
    """

    name: str
    user_ids: list[str]  # [U]
    item_ids: list[str]  # [I]
    titles: list[str]  # [I]
    texts: list[str]  # [I], "" where absent
    images: list[str]  # [I] paths, "" where absent
    audios: list[str]  # [I] paths, "" where absent
    train: Interactions
    valid: Interactions
    test: Interactions
    attributes: dict[str, list[str]] = field(default_factory=dict)  # ground truth, [I] each
    made_by: dict[str, Any] = field(default_factory=dict)

    @property
    def n_users(self) -> int:
        return len(self.user_ids)

    @property
    def n_items(self) -> int:
        return len(self.item_ids)

    def split(self, name: str) -> Interactions:
        return {"train": self.train, "valid": self.valid, "test": self.test}[name]

    def item_hash(self) -> str:
        """Return the digest of the item ids in order.

        Two arrays of item rows match if and only if their digests match.
        """
        return hash_ids(self.item_ids)

    def interaction_hash(self) -> str:
        """Return the digest of all three splits and the user ids."""
        digest = hashlib.sha256(hash_ids(self.user_ids).encode())
        for name in SPLITS:
            for array in self.split(name):
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:32]

    def statistics(self) -> dict[str, Any]:
        """Return the counts for a paper's dataset table.

        They include the number of items that lack each modality. The audio count is present only if
        some item has audio.
        """
        total = sum(len(self.split(name).user) for name in SPLITS)
        without_audio = sum(not audio for audio in self.audios)
        return {
            "users": self.n_users,
            "items": self.n_items,
            "interactions": total,
            **{name: len(self.split(name).user) for name in SPLITS},
            "sparsity": round(1 - total / max(1, self.n_users * self.n_items), 6),
            "items_without_text": sum(not text for text in self.texts),
            "items_without_image": sum(not image for image in self.images),
            **({"items_without_audio": without_audio} if without_audio < self.n_items else {}),
        }


def save(dataset: Dataset, folder: Path) -> None:
    """Write the prepared folder's files into `folder`.

    `folder` must exist (see `files.atomic_folder`).
    """
    arrays = {
        f"{name}_{column}": array
        for name in SPLITS
        for column, array in dataset.split(name)._asdict().items()
    }
    np.savez(folder / "interactions.npz", **arrays)
    encode = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would make one per item
    with open(folder / "items.jsonl", "w", encoding="utf-8") as out:
        names = list(dataset.attributes)
        values = zip(*dataset.attributes.values(), strict=True) if names else None
        rows = zip(
            dataset.item_ids,
            dataset.titles,
            dataset.texts,
            dataset.images,
            dataset.audios,
            strict=True,
        )
        for row in rows:
            record: dict[str, Any] = dict(
                zip(("id", "title", "text", "image", "audio"), row, strict=True)
            )
            if values is not None:
                record["attributes"] = dict(zip(names, next(values), strict=True))
            out.write(encode(record) + "\n")
    (folder / "users.txt").write_text("\n".join(dataset.user_ids) + "\n", encoding="utf-8")
    files.write_json(
        folder / "dataset.json",
        {
            "format": FORMAT,
            "name": dataset.name,
            "statistics": dataset.statistics(),
            "item_hash": dataset.item_hash(),
            "interaction_hash": dataset.interaction_hash(),
            "made_by": dataset.made_by,
        },
    )


def load(folder: Path | str) -> Dataset:
    """Read a prepared folder, or one at a URL.

    The contents are checked against the saved hashes.

    Raises:
      InputError: a file is missing or damaged, or does not belong to the others.
    """
    folder = storage.path(folder)
    if not files.exists(folder / "dataset.json"):
        raise InputError(f"{folder} is not a prepared dataset (no dataset.json); run prepare.py")
    manifest = files.read_json(folder / "dataset.json")
    if manifest.get("format") != FORMAT:
        raise InputError(f"{folder}/dataset.json has format {manifest.get('format')}, not {FORMAT}")
    try:
        with storage.open_file(folder / "interactions.npz") as stream, np.load(stream) as arrays:
            splits = {
                name: Interactions(*(arrays[f"{name}_{key}"] for key in Interactions._fields))
                for name in SPLITS
            }
        with storage.open_file(folder / "items.jsonl") as lines:
            items = [json.loads(line) for line in lines]
        with storage.open_file(folder / "users.txt") as stream:
            user_ids = stream.read().decode().split("\n")[:-1]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{folder} is damaged ({error}); prepare it again") from None
    names = list(items[0].get("attributes", {})) if items else []

    def paths(column: str) -> list[str]:
        item_paths = (item.get(column, "") for item in items)  # older folders have no audio
        return [str(folder / path) if path else "" for path in item_paths]

    dataset = Dataset(
        name=manifest["name"],
        user_ids=user_ids,
        item_ids=[item["id"] for item in items],
        titles=[item["title"] for item in items],
        texts=[item["text"] for item in items],
        images=paths("image"),
        audios=paths("audio"),
        attributes={name: [item["attributes"][name] for item in items] for name in names},
        made_by=manifest["made_by"],
        **splits,
    )
    for hash_name in ("item_hash", "interaction_hash"):
        if getattr(dataset, hash_name)() != manifest[hash_name]:
            raise InputError(
                f"{folder} does not match the {hash_name} it was saved with; prepare again"
            )
    return dataset
