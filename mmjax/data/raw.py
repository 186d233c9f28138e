"""Common output of all dataset sources: coded interactions and items.

Interactions are integer codes; the ids behind the codes and the items' columns come with them.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmjax.core.errors import InputError
from mmjax.data.tables import decode

COLUMNS = ("title", "text", "image", "audio")  # of an item table; its other columns are attributes


@dataclass(frozen=True)
class Raw:
    """Interactions and items of a source, in no particular order.

    E interactions, I items, F feature width.
    """

    user: np.ndarray  # [E] int32, positions in user_ids
    item: np.ndarray  # [E] int32, positions in item_ids
    rating: np.ndarray  # [E] float32, ones where the source has none
    time: np.ndarray  # [E] int64, zeros where the source has none
    split: np.ndarray | None  # [E] int8: 0 train, 1 valid, 2 test; None where the source has none
    user_ids: list[str]
    item_ids: list[str]  # [I], may hold items that nobody interacted with
    titles: list[str]  # [I], "" where absent, as in the next three
    texts: list[str]
    images: list[str]
    audios: list[str]
    attributes: dict[str, list[str]] = field(default_factory=dict)  # [I] each
    features: dict[str, np.ndarray] = field(default_factory=dict)  # [I, F] each
    made_by: dict[str, Any] = field(default_factory=dict)


def assemble(table: pa.Table, items: Mapping[str, Any], **made_by: Any) -> Raw:
    """Build a Raw from an interaction table and item columns.

    Args:
      table: interactions, as `read_table` returns them.
      items: the items' columns, as `join_items` returns them.
    """

    def take(role: str, dtype: type, absent: int) -> np.ndarray:
        if role not in table.column_names:
            return np.full(len(table), absent, dtype)
        return table.column(role).to_numpy().astype(dtype)

    user, user_ids = decode(table.column("user"))
    item, _ = decode(table.column("item"))
    return Raw(
        user=user,
        item=item,
        rating=take("rating", np.float32, 1),
        time=take("time", np.int64, 0),
        split=take("split", np.int8, 0) if "split" in table.column_names else None,
        user_ids=user_ids,
        made_by=made_by,
        **items,
    )


def join_items(
    item_ids: list[str],
    table: Mapping[str, Sequence[str]] | None = None,
    *,
    path: Path | None = None,
    first_row: int = 2,
    repeated: str = "error",
) -> dict[str, Any]:
    """Join the interactions' items with an item table.

    The items of the interactions come first, then those that only the item table has.

    Args:
      item_ids: the interactions' items; they keep their positions.
      table: columns `id` and any of `title`, `text`, `image`, `audio`; all others become
        attributes.
      path: the table's file, for the error.
      first_row: the row of the table's first item, for the error.
      repeated: `error`, or `first` to keep the first row of an id.

    Returns:
      item_ids, titles, texts, images, audios and attributes, as `Raw` holds them.

    Raises:
      InputError: an id repeats.
    """
    table = table or {"id": []}
    ids = list(table["id"])
    row_of = dict(zip(reversed(ids), range(len(ids) - 1, -1, -1), strict=True))  # the first wins
    if len(row_of) < len(ids) and repeated == "error":
        row = next(row for row, key in enumerate(ids) if row_of[key] != row)
        raise InputError(
            f"{path}, row {first_row + row}: item id {ids[row]!r} appears already in row "
            f"{first_row + row_of[ids[row]]}; keep one of the rows"
        )
    known = set(item_ids)
    all_ids = item_ids + [key for key in dict.fromkeys(ids) if key not in known]
    rows = [row_of.get(key, -1) for key in all_ids]

    def align(name: str) -> list[str]:
        if name not in table:
            return [""] * len(all_ids)
        values = [*table[name], ""]  # row -1: the table does not have the item
        return [values[row] for row in rows]

    attribute_names = [name for name in table if name not in ("id", *COLUMNS)]
    return {
        "item_ids": all_ids,
        "titles": align("title"),
        "texts": align("text"),
        "images": align("image"),
        "audios": align("audio"),
        "attributes": {name: align(name) for name in attribute_names},
    }


def find_files(items: dict[str, list[str]], folder: Path, column: str = "image") -> int:
    """Make a column of paths absolute and count missing files.

    A path whose file is missing becomes "".

    Args:
      items: columns of an item table, changed in place; `column` may be absent.
      folder: where relative paths start.
    """
    absolute_paths = [
        str((folder / path).resolve()) if path else "" for path in items.get(column, [])
    ]
    existing_paths = [path if path and os.path.exists(path) else "" for path in absolute_paths]
    if absolute_paths:
        items[column] = existing_paths
    return sum(map(bool, absolute_paths)) - sum(map(bool, existing_paths))
