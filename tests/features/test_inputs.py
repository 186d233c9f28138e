"""Rows to encode, from folders and tables."""

import numpy as np
import pytest
from PIL import Image

from mmjax import store
from mmjax.core.errors import InputError
from mmjax.features.extraction import inputs
from mmjax.features.fuse import fuse


@pytest.fixture
def folder(tmp_path):
    for name in ("b.c.png", "a.jpg", "b.d.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "notes.md").write_text("no image")
    (tmp_path / "meta.tsv").write_text('asin\ttext\nb.d\t"two\nlines"\nz\tonly text\na\t\n')
    (tmp_path / "reviews.csv").write_text("who,what,said\nu1,a,good\nu1,z,bad\nu2,a,fine\n")
    return tmp_path


def test_files_are_rows_named_up_to_the_last_dot(folder):
    rows = inputs.of_files(folder, "image")
    assert rows.ids == ["a", "b.c", "b.d"]
    assert rows.of("image")[1].endswith("b.c.png")
    with pytest.raises(InputError, match="has text to encode"):
        rows.of("text")
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    with pytest.raises(InputError, match="two files of item 'a'"):
        inputs.of_files(folder, "image")
    with pytest.raises(InputError, match="holds no audio file"):
        inputs.of_files(folder, "audio")
    with pytest.raises(InputError, match="is no folder of image files"):
        inputs.of_files(folder / "none", "image")


def test_tables_are_items_or_reviews(folder):
    rows = inputs.of_table(folder / "meta.tsv", ["asin"], "text")
    assert rows.ids == ["b.d", "z", "a"]
    assert rows.of("text") == ["two\nlines", "only text", ""]
    reviews = inputs.of_table(folder / "reviews.csv", ["who", "what"], "said")
    assert reviews.ids == ["u1__a", "u1__z", "u2__a"]
    with pytest.raises(InputError, match="two rows of who 'u1'"):
        inputs.of_table(folder / "reviews.csv", ["who"], "said")
    with pytest.raises(InputError, match="no column 'story'"):
        inputs.of_table(folder / "meta.tsv", ["asin"], "story")


def test_a_missing_image_shifts_nobody(folder):
    """Ducho pairs images and texts by sorted position; here they are paired by id."""
    both = inputs.join(
        inputs.of_files(folder, "image"), inputs.of_table(folder / "meta.tsv", ["asin"], "text")
    )
    assert both.ids == ["a", "b.c", "b.d", "z"]
    assert both.of("text") == ["", "", "two\nlines", "only text"]
    pairs = both.of("image_text")
    assert [bool(pair) for pair in pairs] == [False, False, True, False]
    assert pairs[2] == (str(folder / "b.d.png"), "two\nlines")


def test_a_digest_follows_texts_and_file_names(folder):
    one = inputs.Inputs("x", ["a", "b"], {"text": ["ab", "c"], "image": ["/1/a.png", "/1/b.png"]})
    two = inputs.Inputs("x", ["a", "b"], {"text": ["a", "bc"], "image": ["/2/a.png", "/2/b.png"]})
    assert one.digest("text") != two.digest("text")
    assert one.digest("image") == two.digest("image")  # elsewhere, but the same files
    assert one.digest("image_text") != two.digest("image_text")


@pytest.mark.parametrize("how", ["concat", "sum", "mul", "mean"])
def test_fusion_of_two_stores(tmp_path, how):
    rng = np.random.default_rng(0)
    parts, masks = rng.normal(size=(2, 10, 3)).astype(np.float32), rng.random((2, 10)) < 0.8
    ids = [f"i{n}" for n in range(10)]
    for name, part, mask in zip("ab", parts, masks, strict=True):
        store.write_array(
            tmp_path / name, part, item_ids=ids, present=mask, chunk_rows=4, encoder=name
        )
    fused = fuse([tmp_path / "a", tmp_path / "b"], how, tmp_path / "c")
    features, present = fused.read()
    a, b = (np.where(mask[:, None], part, 0) for part, mask in zip(parts, masks, strict=True))
    wanted = {"concat": np.hstack([a, b]), "sum": a + b, "mul": a * b, "mean": (a + b) / 2}[how]
    np.testing.assert_array_equal(present, masks.all(axis=0))
    np.testing.assert_allclose(features, np.where(present[:, None], wanted, 0), rtol=1e-6)
    assert fused.manifest["encoder"] == "a + b"
    assert fused.item_ids() == ids


def test_what_cannot_be_fused(tmp_path):
    store.write_array(tmp_path / "a", np.ones((2, 3), np.float32), item_ids=["x", "y"])
    store.write_array(tmp_path / "b", np.ones((2, 4), np.float32), item_ids=["x", "y"])
    store.write_array(tmp_path / "c", np.ones((2, 3), np.float32), item_ids=["y", "x"])
    with pytest.raises(InputError, match=r"is 3 wide and .*b 4; fuse them by concat"):
        fuse([tmp_path / "a", tmp_path / "b"], "sum", tmp_path / "out")
    with pytest.raises(InputError, match="different rows, or other orders"):
        fuse([tmp_path / "a", tmp_path / "c"], "sum", tmp_path / "out")
    with pytest.raises(InputError, match="none of concat"):
        fuse([tmp_path / "a", tmp_path / "c"], "glue", tmp_path / "out")
    assert not (tmp_path / "out").exists()
