"""Read JSON Lines files, gzipped or plain, block by block.

A block's columns come from pyarrow's JSON reader, which skips fields that were not requested. A
block that it refuses is read line by line, so that every fault has a line number. Amazon's metadata
of 2014 are Python literals, not JSON: a line may be either.
"""

import ast
import json
import math
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json

from mmjax.core.errors import InputError
from mmjax.core.progress import Progress

BLOCK = 1 << 24  # unpacked bytes; every block gives a column one chunk with its own dictionary


def blocks(path: Path, size: int = BLOCK) -> Iterator[tuple[int, bytes]]:
    """Yield blocks of whole lines with their first line number.

    A block has about `size` bytes. Lines are numbered from 1.

    Raises:
      InputError: the file cannot be read or unpacked.
    """
    total = max(1, path.stat().st_size >> 20)
    with (
        pa.OSFile(str(path)) as file,
        ThreadPoolExecutor(1) as reader,  # unpacks the next block while the last one is parsed
        Progress(f"reading {path.name}", total, unit="megabyte") as progress,
    ):
        stream = pa.CompressedInputStream(file, "gzip") if path.suffix == ".gz" else file

        def read() -> tuple[bytes, int]:
            return stream.read(size), file.tell()

        number, rest, upcoming = 1, b"", reader.submit(read)
        while True:
            try:
                content, offset = upcoming.result()
            except (OSError, pa.ArrowException) as error:
                raise InputError(
                    f"{path} cannot be read ({' '.join(str(error).split())}); fetch it again"
                ) from None
            if not content:
                break
            upcoming = reader.submit(read)
            head, newline, tail = content.rpartition(b"\n")
            if not newline:
                rest += tail
                continue
            block = b"".join((rest, head, newline))
            yield number, block
            number, rest = number + block.count(b"\n"), tail
            if min(total, offset >> 20) > progress.done:
                progress.add(min(total, offset >> 20) - progress.done)
        if rest:
            yield number, rest + b"\n"
        if total > progress.done:
            progress.add(total - progress.done)


def read_columns(
    path: Path, types: Mapping[str, pa.DataType], size: int = BLOCK
) -> Iterator[pa.Table]:
    """Yield the named fields of every line, one table per block.

    A field is null where a line lacks it.

    Args:
      types: field -> `pa.string()` or `pa.float64()`.

    Raises:
      InputError: a line is not an object, or a field is of another type; the error names file and
        line.
    """
    read_options = pa.json.ReadOptions(block_size=1 << 22)  # a thread's part of a block
    parse_options = pa.json.ParseOptions(
        explicit_schema=pa.schema(list(types.items())), unexpected_field_behavior="ignore"
    )
    for number, block in blocks(path, size):
        try:
            table = pa.json.read_json(pa.BufferReader(block), read_options, parse_options)
            table.validate(full=True)  # the reader accepts bytes that are not UTF-8
        except pa.ArrowException:
            table = _read_lines(path, number, block, types)
        yield table


def parse_line(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """Parse a line's object, written as JSON or Python literal.

    Nothing in the line is executed.

    Raises:
      InputError: the line is neither, or is not an object.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, line {number}: {error}; fetch the file again") from None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = _literal(text)
    if not isinstance(value, dict):
        shown = text.strip()
        raise InputError(
            f"{path}, line {number}: {shown[:60] + '…' * (len(shown) > 60)!r} is no object in JSON "
            "or as a Python literal; fetch the file again or remove the line"
        )
    return value


def writable(text: str) -> str:
    """Replace lone surrogates, which no UTF-8 file can hold."""
    return text.encode("utf-8", "replace").decode()


def _literal(text: str) -> Any:
    """Return the value of a Python literal, else None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at escapes that Python does not know, as in "\ "
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None


def _read_lines(
    path: Path, number: int, block: bytes, types: Mapping[str, pa.DataType]
) -> pa.Table:
    columns: dict[str, list] = {name: [] for name in types}
    for row, line in enumerate(block.split(b"\n"), start=number):
        if line.strip():
            record = parse_line(line, path, row)
            for name, kind in types.items():
                value = record.get(name)
                convert = _text if kind == pa.string() else _number
                try:
                    columns[name].append(None if value is None else convert(value))
                except (TypeError, ValueError, OverflowError):
                    expected = "a text" if kind == pa.string() else "a number"
                    raise InputError(
                        f"{path}, line {row}: {name} is {value!r:.60}, which is not {expected}; "
                        "correct or remove the line"
                    ) from None
    return pa.table({name: pa.array(values, types[name]) for name, values in columns.items()})


def _text(value: Any) -> str | None:
    if isinstance(value, float) and math.isnan(value):
        return None
    if not isinstance(value, str | int | float):
        raise TypeError
    return writable(str(value))


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    return float(value)
