"""Outputs appear whole or not at all."""

import pytest

from mmjax.core import files
from mmjax.core.errors import InputError


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_folder_appears_when_the_block_ends(tmp_path):
    out = tmp_path / "deep" / "out"
    with files.atomic_folder(out) as aside:
        (aside / "one").write_text("1")
        assert not out.exists()
        assert aside.parent == out.parent  # the same file system, so that the rename is one step
    assert listing(tmp_path) == ["deep", "deep/out", "deep/out/one"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, InputError])
def test_an_error_leaves_what_was_there(tmp_path, error):
    out = tmp_path / "out"
    with pytest.raises(error), files.atomic_folder(out) as aside:  # noqa: PT012
        (aside / "half").write_text("1")
        raise error("stop")
    assert listing(tmp_path) == []
    out.mkdir()
    (out / "old").write_text("old")
    with pytest.raises(error), files.atomic_folder(out, overwrite=True) as aside:  # noqa: PT012
        (aside / "half").write_text("1")
        raise error("stop")
    assert listing(tmp_path) == ["out", "out/old"]


def test_a_full_folder_is_replaced_only_when_asked(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with files.atomic_folder(out) as aside:  # an empty one is nobody's work
        (aside / "old").write_text("old")
    with pytest.raises(InputError, match=r"out exists already; .* --overwrite"):
        files.atomic_folder(out).__enter__()
    assert listing(tmp_path) == ["out", "out/old"]
    with files.atomic_folder(out, overwrite=True) as aside:
        (aside / "new").write_text("new")
    assert listing(tmp_path) == ["out", "out/new"]


def test_through_a_link_and_in_the_present_folder(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for overwrite in (False, True):
        with files.atomic_folder(tmp_path / "link", overwrite=overwrite) as aside:
            (aside / "new").write_text(f"{overwrite}")
    assert (tmp_path / "real" / "new").read_text() == "True"
    assert (tmp_path / "link").is_symlink()
    monkeypatch.chdir(tmp_path / "real")
    with pytest.raises(InputError, match="real exists already"):
        files.atomic_folder(".").__enter__()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_never_replaced_by_a_folder(tmp_path, overwrite):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="is a file, not a folder"):
        files.atomic_folder(tmp_path / "out", overwrite=overwrite).__enter__()
    assert (tmp_path / "out").read_text() == "mine"


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="cannot be made"):
        files.atomic_folder(tmp_path / "file" / "out").__enter__()
    with pytest.raises(InputError, match="cannot be written"):
        files.write_bytes(tmp_path / "file" / "out.json", b"")
    assert listing(tmp_path) == ["file"]


def test_bytes_and_json_by_rename(tmp_path):
    path = tmp_path / "deep" / "x.json"
    files.write_json(path, {"a": [1, 2.5, None]})
    assert files.read_json(path) == {"a": [1, 2.5, None]}
    with pytest.raises(ValueError, match="Out of range float"):
        files.write_json(path, {"a": float("nan")})
    assert files.read_json(path) == {"a": [1, 2.5, None]}
    (tmp_path / "folder.json" / "full").mkdir(parents=True)
    with pytest.raises(InputError, match="cannot be written"):
        files.write_bytes(tmp_path / "folder.json", b"x")
    assert listing(tmp_path) == ["deep", "deep/x.json", "folder.json", "folder.json/full"]


def test_json_that_is_none(tmp_path):
    with pytest.raises(InputError, match=r"x\.json is missing"):
        files.read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(InputError, match=r"x\.json is not JSON: .*line 1"):
        files.read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"x\.json is not JSON"):
        files.read_json(tmp_path / "x.json")
