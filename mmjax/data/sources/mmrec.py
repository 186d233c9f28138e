"""Read MMRec's folders: one `.inter` table and `.npy` features.

The table's columns are userID, itemID, x_label (0 train, 1 valid, 2 test) and perhaps rating and
timestamp, each maybe followed by a type as in `userID:token`. Items are the integers 0..max, and
row i of every array is item i, so items without interactions stay in the catalogue.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from mmjax.core.errors import InputError
from mmjax.data.raw import Raw, assemble, join_items
from mmjax.data.tables import column_names, decode, read_table, require

ROLES = {
    "user": ("userID", "user_id", "user"),
    "item": ("itemID", "item_id", "item"),
    "split": ("x_label",),
    "rating": ("rating",),
    "time": ("timestamp", "time"),
}


def read(raw: Path) -> Raw:
    """Read an MMRec folder with its feature arrays.

    `raw` is the folder or the `.inter` file itself; the arrays lie beside the table.

    Raises:
      InputError: there is no single `.inter`, a column is missing, an item is not an integer, an
        array's rows do not match the items, or a table is at fault (see `read_table`).
    """
    path = require(raw)
    if raw.is_dir():
        tables = sorted(raw.glob("*.inter"))
        if len(tables) != 1:
            found = ", ".join(path.name for path in tables) or "none"
            raise InputError(f"{raw} must hold one .inter file, found {found}; name it in --raw")
        path = tables[0]
    names = column_names(path)
    full_names = {name.split(":")[0]: name for name in names}
    columns = {
        role: [full_names.get(option, option) for option in options]
        for role, options in ROLES.items()
    }
    table = read_table(path, columns, optional=("split", "rating", "time"))
    _, distinct = decode(table.column("item"))
    for key in distinct:
        if not (key.isascii() and key.isdigit()):
            raise InputError(
                f"{path}, item {key!r} is not an integer from 0, which .inter files need, because "
                "it is the item's row in the features; use --source=interactions"
            )
    numbers = np.array(list(map(int, distinct)), np.int64)
    count = int(numbers.max(initial=-1)) + 1
    features = {}
    for array_path in sorted(path.parent.glob("*.npy")):
        array = _load(array_path)
        if array is None:
            continue
        if len(array) != count:
            raise InputError(
                f"{array_path} has {len(array):,} rows, but {path.name} has {count:,} items (its "
                "largest item plus one); take the array that belongs to it"
            )
        features[array_path.stem] = array
    items = join_items([str(number) for number in range(count)])
    assembled = assemble(table, {**items, "features": features}, source="mmrec", file=path.name)
    return replace(
        assembled, item=numbers[assembled.item].astype(np.int32)
    )  # codes of the ids 0..max, in that order


def _load(path: Path) -> np.ndarray | None:
    """Memory-map the array of a feature file.

    Returns:
      The array, or None if it is not a matrix of floats.

    Raises:
      InputError: the file is not a readable array.
    """
    try:
        with open(path, "rb") as stream:
            version = np.lib.format.read_magic(stream)
            header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
            shape, _, dtype = header(stream)
        if dtype.kind != "f" or len(shape) != 2:  # MMRec keeps pickled graphs beside the features
            return None
        return np.load(path, mmap_mode="r")
    except (AttributeError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable array ({error}); replace it") from None
