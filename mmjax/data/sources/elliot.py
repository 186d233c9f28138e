"""Read Elliot's fixed splits: train.tsv, val.tsv and test.tsv.

valid.tsv may stand for val.tsv. Each file holds user, item and perhaps rating and timestamp, with
a header or, as Elliot writes them, without. An items.tsv beside them may hold item, text, title,
asin and image (a path relative to it).
"""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from mmjax.data.raw import Raw, assemble, find_files, join_items
from mmjax.data.tables import column_names, decode, read_table, require

ROLES = ("user", "item", "rating", "time")
HEADER = {
    "user": ("user", "userId", "user_id", "userID", "uid"),
    "item": ("item", "itemId", "item_id", "itemID", "iid"),
    "rating": "rating",
    "time": ("timestamp", "time"),
}


def read(raw: Path) -> Raw:
    """Read the folder; each file is one split.

    Raises:
      InputError: a file or column is missing, or a table is at fault (see `read_table`).
    """
    require(raw)
    valid = raw / ("valid.tsv" if (raw / "valid.tsv").exists() else "val.tsv")
    tables = [_read(path) for path in (raw / "train.tsv", valid, raw / "test.tsv")]
    # A column counts only if all three files have it.
    shared = [role for role in ROLES if all(role in table.column_names for table in tables)]
    parts = [
        table.select(shared).append_column(
            "split", pa.repeat(pa.scalar(label, pa.int8()), len(table))
        )
        for label, table in enumerate(tables)
    ]
    table = pa.concat_tables(parts)
    _, item_ids = decode(table.column("item"))
    path = raw / "items.tsv"
    items, missing = None, 0
    if path.exists():
        optional = {name: name for name in ("text", "title", "image", "asin")}
        columns = {"id": HEADER["item"], **optional}
        items = read_table(path, columns, separator="\t", optional=tuple(optional)).to_pydict()
        missing = find_files(items, path.parent)
    joined = join_items(item_ids, items, path=path)
    return assemble(table, joined, source="elliot", images_not_found=missing)


def _read(path: Path) -> pa.Table:
    names = column_names(require(path), "\t")
    columns: Mapping = HEADER
    header = bool(names) and names[0] in HEADER["user"]
    if not header:
        columns = {role: position for position, role in enumerate(ROLES)}
    return read_table(path, columns, separator="\t", header=header, optional=("rating", "time"))
