"""Read CSV, TSV and Parquet tables column-wise and strictly.

pyarrow reads the files. Ids become codes through its dictionary encoding, so ten million rows of
text ids cost seconds and a few hundred megabytes. Rows are numbered as an editor shows them: the
header, if present, is row 1 (a Parquet file's first row is row 1).
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from mmjax.core.errors import InputError

IDS = ("user", "item")  # read as dictionary-encoded text
NUMBERS = ("rating", "time")  # read as float64
SPLIT = "split"  # read as int8; every other column is text
LABELS = {"0": 0, "train": 0, "1": 1, "valid": 1, "val": 1, "validation": 1, "2": 2, "test": 2}
PARQUET = (".parquet", ".pq")

Names = str | int | Sequence[str]  # a column's name, its position, or its possible names


def require(path: Path, hint: str = "check --raw") -> Path:
    """Return the path if it exists.

    Raises:
      InputError: it does not exist.
    """
    if not path.exists():
        raise InputError(f"{path} is missing; {hint}")
    return path


def column_names(path: Path, separator: str | None = None, encoding: str = "utf-8") -> list[str]:
    """Return the column names of a delimited or Parquet file.

    Those of a delimited file are the fields of its first row.

    Raises:
      InputError: the path is missing or is not such a file.
    """
    if require(path).is_dir():
        raise InputError(f"{path} is a folder, not a table; name the file")
    try:
        if path.suffix in PARQUET:
            return pa.parquet.read_schema(path).names
        first = _first_line(path, encoding)
    except (pa.ArrowException, OSError) as error:
        raise InputError(_unreadable(path, error)) from None
    return next(csv.reader([first], delimiter=separator or _guess_separator(first)), [])


def read_table(
    path: Path,
    columns: Mapping[str, Names],
    *,
    optional: Sequence[str] = (),
    separator: str | None = None,
    header: bool = True,
    encoding: str = "utf-8",
) -> pa.Table:
    """Read columns of a CSV, TSV or Parquet file.

    The suffix gives the format. The columns are renamed to their roles.

    Args:
      columns: role -> where to find it. The roles `user` and `item` come back dictionary-encoded,
        `rating` and `time` as float64, `split` as int8 (see LABELS), all others as text.
      optional: roles that may be absent; they are left out of the table.
      separator: of a delimited file; None takes a tab if the first row has one, else a comma.
      header: whether the first row names the columns; otherwise `columns` holds positions.

    Raises:
      InputError: the file or a column is missing, a row has too few or too many fields, an id is
        empty, or a number or a split label is invalid.
    """
    names = column_names(path, separator, encoding)
    if not header:
        names = [f"f{position}" for position in range(len(names))]
    column_by_role = {}
    for role, wanted in columns.items():
        column_name = _find(names, wanted)
        if column_name is not None:
            column_by_role[role] = column_name
        elif role not in optional:
            raise InputError(
                f"{path} has no column {_spell(wanted)} for the {role}; it has "
                + (", ".join(names) if header else f"{len(names)} columns without a header")
            )
    if path.suffix in PARQUET:
        coded = [name for role, name in column_by_role.items() if role in IDS]
        table = pa.parquet.read_table(
            path, columns=list(column_by_role.values()), read_dictionary=coded
        )
    else:
        table = _read_delimited(path, column_by_role, separator, header, encoding)
    first_row = 1 + (header and path.suffix not in PARQUET)
    arrays = {}
    for role, name in column_by_role.items():
        column = table.column(name)
        if role in IDS:
            arrays[role] = _encode(column, path, name, first_row)
        elif role in NUMBERS:
            arrays[role] = _parse(column, path, name, first_row)
        elif role == SPLIT:
            arrays[role] = _label(column, path, name, first_row)
        else:
            arrays[role] = column.cast(pa.string()).fill_null("")
    return pa.table(arrays)


def decode(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """Return codes [E] int32 and ids of a dictionary-encoded column.

    Its chunks may have different dictionaries.
    """
    if not len(column):
        return np.zeros(0, np.int32), []
    column = _one_dictionary(column)
    return column.chunk(0).indices.to_numpy(), column.chunk(0).dictionary.to_pylist()


def _find(names: Sequence[str], wanted: Names) -> str | None:
    if isinstance(wanted, int):
        return names[wanted] if wanted < len(names) else None
    options = [wanted] if isinstance(wanted, str) else wanted
    return next((name for name in options if name in names), None)


def _spell(wanted: Names) -> str:
    if isinstance(wanted, int):
        return f"number {wanted + 1}"
    return repr(wanted) if isinstance(wanted, str) else " or ".join(map(repr, wanted))


def _first_line(path: Path, encoding: str) -> str:
    with pa.input_stream(str(path)) as stream:  # unpacks .gz and the like
        head = stream.read(1 << 20).decode(encoding, errors="replace")
    return next(iter(head.removeprefix("\ufeff").splitlines()), "")


def _guess_separator(line: str) -> str:
    return "\t" if "\t" in line else ","


def _read_delimited(
    path: Path, found: Mapping[str, str], separator: str | None, header: bool, encoding: str
) -> pa.Table:
    coded = pa.dictionary(pa.int32(), pa.string())
    types = {name: coded if role in IDS else pa.string() for role, name in found.items()}
    multiline = not set(IDS) & set(found)  # texts of items may span lines, interactions do not
    convert = pa.csv.ConvertOptions(include_columns=list(types), column_types=types)
    parse = pa.csv.ParseOptions(
        delimiter=separator or _guess_separator(_first_line(path, encoding)),
        newlines_in_values=multiline,
    )
    for threads in (True, False):
        # Large blocks, because every block has a dictionary of its own.
        options = pa.csv.ReadOptions(
            use_threads=threads,
            block_size=1 << 24,
            autogenerate_column_names=not header,
            encoding=encoding,
        )
        try:
            return pa.csv.read_csv(path, options, parse, convert)
        except (pa.ArrowException, OSError) as error:
            fault = error  # only a single-threaded reader knows the row, so read again
    raise InputError(_unreadable(path, fault)) from None


def _unreadable(path: Path, fault: Exception) -> str:
    return f"{path} cannot be read as a table: {' '.join(str(fault).split())}; mend the file"


def _encode(column: pa.ChunkedArray, path: Path, name: str, first_row: int) -> pa.ChunkedArray:
    """Encode ids as one chunk of dictionary-encoded text.

    Raises:
      InputError: an id is missing or empty.
    """
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    if not len(column):
        return column.cast(pa.dictionary(pa.int32(), pa.string()))
    if column.null_count:
        raise InputError(_at(path, first_row, pc.index(column.is_null(), True), name, "no id"))
    coded = _one_dictionary(column).chunk(0)
    ids = coded.dictionary.cast(pa.string())
    blank = pc.index(ids, "").as_py()
    row = pc.index(coded.indices, blank) if blank >= 0 else pa.scalar(-1)
    if row.as_py() >= 0:
        raise InputError(_at(path, first_row, row, name, "an empty id"))
    return pa.chunked_array([pa.DictionaryArray.from_arrays(coded.indices, ids)])


def _one_dictionary(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the same column as one chunk.

    (`combine_chunks` would merge the dictionaries once more.)
    """
    if column.num_chunks == 1:
        return column
    chunks = column.unify_dictionaries().chunks
    codes = pa.concat_arrays([chunk.indices for chunk in chunks]).cast(pa.int32())
    return pa.chunked_array([pa.DictionaryArray.from_arrays(codes, chunks[-1].dictionary)])


def _parse(column: pa.ChunkedArray, path: Path, name: str, first_row: int) -> pa.ChunkedArray:
    """Convert a column to finite float64 numbers.

    Timestamps become seconds.

    Raises:
      InputError: a value is not a finite number; the error names the first such row.
    """
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("s"), safe=False).cast(pa.int64())
    numbers = _numbers(column)
    if numbers is not None:
        return numbers
    low, high = 0, len(column)  # the first fault lies in low..high
    while high - low > 1:
        middle = (low + high) // 2
        if _numbers(column.slice(low, middle - low)) is None:
            high = middle
        else:
            low = middle
    problem = f"{column[low].as_py()!r}, which is not a number"
    raise InputError(_at(path, first_row, low, name, problem))


def _numbers(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Return the column as finite float64, or None.

    None means that a value is not a finite number.
    """
    try:
        numbers = column.cast(pa.float64())
    except pa.ArrowException:
        return None
    return (
        None
        if numbers.null_count or not pc.all(pc.is_finite(numbers), min_count=0).as_py()
        else numbers
    )


def _label(column: pa.ChunkedArray, path: Path, name: str, first_row: int) -> pa.Array:
    """Convert names or numbers of splits to int8.

    Raises:
      InputError: a value is not in LABELS.
    """
    coded = column.cast(pa.string()).fill_null("").combine_chunks().dictionary_encode()
    values = coded.dictionary.to_pylist()
    for code, value in enumerate(values):
        if value not in LABELS:
            row = pc.index(coded.indices, code)
            problem = f"{value!r}, which is not one of {', '.join(LABELS)}"
            raise InputError(_at(path, first_row, row, name, problem))
    labels = np.array([LABELS[value] for value in values], np.int8)
    return pa.array(labels[coded.indices.to_numpy(zero_copy_only=False)])


def _at(path: Path, first_row: int, index: Any, name: str, what: str) -> str:
    row = first_row + (index.as_py() if isinstance(index, pa.Scalar) else index)
    return f"{path}, row {row}, column {name}: {what}; correct or remove the row"
