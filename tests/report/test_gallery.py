"""The page of descriptions: complete, escaped, self-contained, and as a browser shows it."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from support import worlds
from support.scripting import script

from mmjax.core.errors import InputError
from mmjax.data import dataset as datasets
from mmjax.features.descriptions import describe
from mmjax.features.extraction.inputs import Inputs
from mmjax.report.descriptions import gallery

MAGENTA = (255, 0, 255)
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def letters(words):
    return np.array(
        [[word.count(c) for c in "abcdefghijklmnopqrstuvwxyz"] for word in words], float
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A prepared world of 30 items, two models' descriptions of it, and pictures of a few items.

    Every item has a magenta picture but item 1, whose file is damaged, and item 2, which has none.
    """
    place = tmp_path_factory.mktemp("gallery")
    worlds.small(place / "world", users=60, items=30, interactions=500, features=False)
    data = datasets.load(place / "world")
    Image.new("RGB", (300, 200), MAGENTA).save(place / "magenta.png")
    (place / "bad.png").write_bytes(b"no image")
    images = [str(place / "magenta.png")] * data.n_items
    images[1], images[2] = str(place / "bad.png"), ""
    titles = [f"<b>{title}</b> & co" for title in data.titles]
    data = replace(data, images=images, titles=titles)
    with describe.files.atomic_folder(place / "data") as aside:
        datasets.save(data, aside)
    names = list(data.attributes)[:2]
    columns = [data.attributes[name] for name in names]
    for model, form in (("good", "[{}] {{{}}} [{}] {{{}}}"), ("lax", "{}: {}\n{}: {}")):
        texts = [form.format(names[0], a, names[1], b) for a, b in zip(*columns, strict=True)]
        if model == "lax":
            texts[:4] = ["<script>alert(1)</script>", "I see " * 3, "", f"[{names[0]}] {{open"]
        given = Inputs(model, data.item_ids, {"text": texts})
        describe.describe(given, place / model, letters, slots=names)
    return place


@pytest.fixture(scope="module")
def page(folder):
    data = datasets.load(folder / "data")
    described = gallery.load([folder / "good", folder / "lax"])
    return gallery.write(described, data, folder / "page", items=30)


class Checker(HTMLParser):
    """Tags must be closed in order; collects what a browser would fetch, and the text."""

    def __init__(self):
        super().__init__()
        self.open, self.fetched, self.words, self.tags = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.fetched += [v for k, v in attributes if k in ("src", "href", "srcset")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def read(page):
    checker = Checker()
    checker.feed(page.read_text())
    assert not checker.open
    return checker


def test_the_page_is_whole_and_fetches_nothing(page):
    checker = read(page)
    assert "script" not in checker.tags
    assert "link" not in checker.tags
    assert len(checker.fetched) == 28  # one has no picture, one a damaged file
    assert all(src.startswith("data:image/jpeg;base64,") for src in checker.fetched)
    style = re.search(r"<style>(.*)</style>", page.read_text(), re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style


def test_all_that_was_said_is_there(page, folder):
    words = "\n".join(read(page).words)
    data = datasets.load(folder / "data")
    for name in ("good", "lax"):
        lines = (folder / name / "parsed.jsonl").read_text().splitlines()
        for line in map(json.loads, lines):
            assert line["text"] in words
        summary = json.loads((folder / name / "summary.json").read_text())
        for slot in summary["slots"].values():
            assert f"{slot['distinct']} distinct values" in words
    for title in data.titles:
        assert title in words  # as it is: with <b> and &, escaped in the source
    for cell in ("100.00%", "89.66%", "not an image", "no image", "free text", "truncated"):
        assert cell in words, cell
    assert "Not all slots read: lax, 3 answers" in words
    assert "Not all slots read: good" not in words
    assert words.count("In truth") == 30


def test_fewer_items_are_drawn_by_seed(folder):
    data, described = datasets.load(folder / "data"), gallery.load([folder / "good"])

    def shown(seed):
        path = gallery.write(described, data, folder / "few", items=5, seed=seed)
        return re.findall(r'id="item-([^"]*)"', path.read_text())

    assert len(shown(0)) == 5
    assert shown(0) == shown(0) != shown(1)


def test_without_any_image_there_are_no_boxes(folder):
    data = datasets.load(folder / "data")
    bare = replace(data, images=[""] * data.n_items)
    path = gallery.write(gallery.load([folder / "good"]), bare, folder / "bare")
    assert 'class="picture' not in path.read_text()


def test_what_is_no_description_is_named(folder, tmp_path):
    with pytest.raises(InputError, match=r"no summary\.json; make it with scripts/describe\.py"):
        gallery.load([folder / "page"])
    with pytest.raises(InputError, match="two of the folders are called good, good"):
        gallery.load([folder / "good", folder / "good"])
    shutil.copytree(folder / "good", tmp_path / "torn")
    (tmp_path / "torn" / "parsed.jsonl").write_text('{"id": "x"')
    with pytest.raises(InputError, match=r"parsed\.jsonl is damaged"):
        gallery.load([tmp_path / "torn"])
    data = datasets.load(folder / "data")
    other = replace(data, item_ids=[f"other{n}" for n in range(data.n_items)])
    with pytest.raises(InputError, match="of other items than those"):
        gallery.write(gallery.load([folder / "good"]), other, tmp_path)


@pytest.mark.slow
def test_the_script(folder):
    described = f"--descriptions={folder / 'good'},{folder / 'lax'}"
    done = script("report.py", described, f"--dataset={folder / 'data'}", f"--out={folder / 's'}")
    assert done.returncode == 0, done.stderr
    names = ("descriptions.html", "descriptions.png")
    assert done.stdout.splitlines() == [f"wrote {folder / 's' / name}" for name in names]
    with Image.open(folder / "s" / "descriptions.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    assert MAGENTA in colours
    assert len(read(folder / "s" / "descriptions.html").fetched) == 28


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
@pytest.mark.parametrize("width", [1200, 500])  # the least that headless Chromium lays out
def test_as_a_browser_shows_it(page, tmp_path, width):
    """Pictures and bars are drawn, and nothing sticks out to the right."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},6000"]
    command += [f"--screenshot={tmp_path / 'shot.png'}", page.resolve().as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    with Image.open(tmp_path / "shot.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[1] == width
    magenta = np.abs(pixels - MAGENTA).max(axis=2) < 40
    assert magenta.sum() > 10 * 160 * 150  # ten pictures and more
    bars = (pixels == (0x25, 0x63, 0xEB)).all(axis=2)
    assert bars.sum() > 1000
    assert (pixels[:, -10:] == 255).all()  # the margin stays free
