"""Files of one object a line, gzipped or plain, read a block at a time.

A block's columns come from pyarrow's JSON reader, which skips the fields that nobody asks for; a
block that it refuses is read line by line, so that every fault has a line number. Amazon's metadata
of 2014 are no JSON but Python literals: a line may be either.
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

BLOCK = 1 << 24  # bytes, unpacked; a column's chunk, so its dictionary, is a block's


def blocks(path: Path, size: int = BLOCK) -> Iterator[tuple[int, bytes]]:
    """Whole lines of the file, about `size` bytes at a time, and the first one's number, from 1.

    Raises:
      InputError: the file cannot be read or unpacked.
    """
    total = max(1, path.stat().st_size >> 20)
    with (
        pa.OSFile(str(path)) as file,
        ThreadPoolExecutor(1) as ahead,  # unpacks while the last block is parsed
        Progress(f"reading {path.name}", total, unit="megabyte") as progress,
    ):
        stream = pa.CompressedInputStream(file, "gzip") if path.suffix == ".gz" else file

        def read() -> tuple[bytes, int]:
            return stream.read(size), file.tell()

        number, rest, upcoming = 1, b"", ahead.submit(read)
        while True:
            try:
                content, place = upcoming.result()
            except (OSError, pa.ArrowException) as error:
                raise InputError(
                    f"{path} cannot be read ({' '.join(str(error).split())}); fetch it again"
                ) from None
            if not content:
                break
            upcoming = ahead.submit(read)
            head, newline, tail = content.rpartition(b"\n")
            if not newline:
                rest += tail
                continue
            block = b"".join((rest, head, newline))
            yield number, block
            number, rest = number + block.count(b"\n"), tail
            if min(total, place >> 20) > progress.done:
                progress.add(min(total, place >> 20) - progress.done)
        if rest:
            yield number, rest + b"\n"
        if total > progress.done:
            progress.add(total - progress.done)


def read_columns(
    path: Path, types: Mapping[str, pa.DataType], size: int = BLOCK
) -> Iterator[pa.Table]:
    """The named fields of every line, null where a line lacks one; a table a block.

    Args:
      types: field -> `pa.string()` or `pa.float64()`.

    Raises:
      InputError: a line is no object, or a field is of another type; it names file and line.
    """
    reading = pa.json.ReadOptions(block_size=1 << 22)  # what a thread takes of a block
    parsing = pa.json.ParseOptions(
        explicit_schema=pa.schema(list(types.items())), unexpected_field_behavior="ignore"
    )
    for number, block in blocks(path, size):
        try:
            table = pa.json.read_json(pa.BufferReader(block), reading, parsing)
            table.validate(full=True)  # the reader lets bytes through that are no UTF-8
        except pa.ArrowException:
            table = _read_lines(path, number, block, types)
        yield table


def parse_line(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """A line's object, written as JSON or as a Python literal; nothing in it is run.

    Raises:
      InputError: it is neither, or no object.
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
    """The text with halves of surrogate pairs, which no file in UTF-8 can hold, replaced."""
    return text.encode("utf-8", "replace").decode()


def _literal(text: str) -> Any:
    """The value of a Python literal; None if it is none."""
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
    for place, line in enumerate(block.split(b"\n"), start=number):
        if line.strip():
            record = parse_line(line, path, place)
            for name, kind in types.items():
                value = record.get(name)
                convert = _text if kind == pa.string() else _number
                try:
                    columns[name].append(None if value is None else convert(value))
                except (TypeError, ValueError, OverflowError):
                    wanted = "a text" if kind == pa.string() else "a number"
                    raise InputError(
                        f"{path}, line {place}: {name} is {value!r:.60}, which is not {wanted}; "
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
