"""Blocks of lines, and lines that are JSON or Python literals."""

import gzip
import json
import math

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.core.errors import InputError
from mmjax.data.jsonlines import blocks, parse_line, read_columns, writable

TYPES = {"user": pa.string(), "stars": pa.float64()}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    max_leaves=6,
)


def rows(path, size=1 << 20):
    return [row for table in read_columns(path, TYPES, size) for row in table.to_pylist()]


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(TEXTS, VALUES, max_size=4))
def test_a_line_is_json_or_a_literal(record):
    finite = json.loads(json.dumps(record))
    assert parse_line(json.dumps(record).encode(), "f", 1) == finite
    assert parse_line(json.dumps(record, ensure_ascii=False).encode(), "f", 1) == finite
    literal = repr(record)
    if "inf" not in literal:  # has no literal
        assert parse_line(literal.encode(), "f", 1) == record


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(TEXTS, TEXTS, min_size=1, max_size=4), st.data())
def test_part_of_a_line_is_refused(record, data):
    line = repr(record)
    cut = data.draw(st.integers(1, len(line) - 1))
    with pytest.raises(InputError, match=r"f, line 7: .* is no object in JSON or as a Python lit"):
        parse_line(line[:cut].encode(), "f", 7)


@pytest.mark.parametrize(
    "line",
    [
        "[1]",
        "'text'",
        "{1, 2}",
        "{'a': open('x')}",
        "__import__('os').abort()",
        "{'a': 1",
        "{" * 5000,
        "[" * 100_000,
        "-" * 100_000 + "1",
        "{'a': '\0'}",
    ],
)
def test_what_is_no_object(line):
    with pytest.raises(InputError, match=r"f, line 3: .* is no object") as error:
        parse_line(line.encode(), "f", 3)
    assert len(str(error.value)) < 300


def test_escapes_that_python_does_not_know(recwarn):
    assert parse_line(rb"{'a': 'x\ y'}", "f", 1) == {"a": "x\\ y"}
    assert not recwarn


@settings(deadline=None)
@given(st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\n", b""))), st.integers(1, 40))
def test_blocks_are_whole_lines(tmp_path_factory, lines, size):
    path = tmp_path_factory.mktemp("b") / "x.gz"
    path.write_bytes(gzip.compress(b"\n".join(lines)))
    found, expected = [], 1
    for number, block in blocks(path, size):
        assert number == expected
        assert block.endswith(b"\n")
        expected += block.count(b"\n")
        found.append(block)
    content = b"".join(found)
    assert content.removesuffix(b"\n") == b"\n".join(lines).removesuffix(b"\n")


def test_columns_of_any_spelling(tmp_path):
    path = tmp_path / "x.json"
    lines = [
        '{"user": "é", "stars": 5.0, "more": [{"a": 1}], "text": "x\\ny"}',
        "",
        '{"stars": null, "user": "b"}',
        '{"user": 17, "stars": "4.5"}',  # from here on pyarrow refuses
        "{'user': \"it's\", 'stars': 3}",
        '{"user": "half \\ud83d", "stars": NaN}',
        '{"stars": 1, "stars": 2}',
        '{"user": NaN}',
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    expected = [("é", 5), ("b", None), ("17", 4.5), ("it's", 3), ("half ?", math.nan)]
    expected += [(None, 2), (None, None)]
    for size in (1 << 20, 1):
        found = [tuple(row.values()) for row in rows(path, size)]
        assert str(found) == str([(u, None if s is None else float(s)) for u, s in expected])
        json.dumps(found, ensure_ascii=False).encode()
    assert writable("a\ud83d") == "a?"


FAULTS = {
    "number": ('{"user": "a", "stars": "good"}', "stars is 'good', which is not a number"),
    "bool": ('{"user": "a", "stars": true}', "stars is True, which is not a number"),
    "id": ('{"user": ["a"], "stars": 1}', r"user is \['a'\], which is not a text"),
    "cut": ('{"user": "a", "st', '\'{"user": "a", "st\' is no object in JSON'),
    "literal": ("{'user': 'a', 'st", "is no object in JSON or as a Python literal"),
    "bytes": (b'{"user": "\xff", "stars": 1}', "'utf-8' codec can't decode byte 0xff"),
    "huge": ("{'user': 'a', 'stars': 1" + "0" * 400 + "}", "stars is 1000.*is not a number"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_have_a_line(tmp_path, fault, packed):
    line, message = FAULTS[fault]
    content = b'{"user": "a", "stars": 1}\n' * 3000 + (line if fault == "bytes" else line.encode())
    content += b'\n{"user": "a", "stars": 1}\n'
    path = tmp_path / ("x.gz" if packed else "x.json")
    path.write_bytes(gzip.compress(content) if packed else content)
    for size in (1 << 20, 5000):
        with pytest.raises(InputError, match=rf"{path.name}, line 3001: .*{message}") as error:
            rows(path, size)
        assert len(str(error.value)) < 300 + len(str(path))


def test_a_line_larger_than_a_block(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"user": "a", "more": "%s"}\n{"user": "b"}\n' % ("x" * (5 << 20)))
    assert [row["user"] for row in rows(path, 1 << 20)] == ["a", "b"]


def test_damaged_archives(tmp_path):
    path = tmp_path / "x.gz"
    whole = gzip.compress(b'{"user": "a"}\n' * 10_000)
    for content in (whole[:-20], b"no archive", whole[:30] + b"!" + whole[31:]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x\.gz.*fetch (it|the file) again"):
            rows(path)
    path.write_bytes(whole + whole)  # two archives one after the other are one file
    assert len(rows(path)) == 20_000
    path.write_bytes(gzip.compress(b""))
    assert rows(path) == []
