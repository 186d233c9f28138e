"""Read any CSV, TSV or Parquet table of interactions.

The columns are given by name.
"""

from pathlib import Path

from mmjax.data.raw import Raw, assemble, find_files, join_items
from mmjax.data.tables import decode, read_table

ITEM_COLUMNS = {
    "id": ("id", "item", "item_id"),
    "title": "title",
    "text": ("text", "description"),
    "image": "image",
    "audio": "audio",
}


def read(
    raw: Path,
    *,
    user_column: str = "user",
    item_column: str = "item",
    rating_column: str | None = None,
    time_column: str | None = None,
    split_column: str | None = None,
    items_file: Path | None = None,
) -> Raw:
    """Read a table of interactions and perhaps one of items.

    Args:
      raw: the table; `.parquet`, or text separated by tabs or commas, with a header.
      rating_column: None reads `rating` if there is one; a name that is given must exist. The same
        holds for time (`timestamp` or `time`, in seconds) and split (`split`, holding 0, 1, 2 or
        train, valid, test).
      items_file: table of items: id, and any of title, text (or description), image and audio
        (paths relative to the table).

    Raises:
      InputError: a file or column is missing, an item id repeats, or a table is at fault (see
        `read_table`).
    """
    columns = {
        "user": user_column,
        "item": item_column,
        "rating": rating_column or "rating",
        "time": time_column or ("timestamp", "time"),
        "split": split_column or "split",
    }
    requested = {"rating": rating_column, "time": time_column, "split": split_column}
    optional = [role for role, column in requested.items() if column is None]
    table = read_table(raw, columns, optional=optional)
    _, item_ids = decode(table.column("item"))
    items, not_found = None, {}
    if items_file is not None:
        absent = ("title", "text", "image", "audio")  # may be absent
        items = read_table(items_file, ITEM_COLUMNS, optional=absent).to_pydict()
        not_found = {
            f"{column}s_not_found": find_files(items, items_file.parent, column)
            for column in ("image", "audio")
            if column in items
        }
    joined = join_items(item_ids, items, path=items_file)
    return assemble(table, joined, source="interactions", **not_found)
