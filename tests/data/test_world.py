"""The world: exact counts, reproducible, true texts, legible pictures, tastes worth learning."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmjax.core.errors import InputError
from mmjax.data.prepare import prepare
from mmjax.data.synthetic import drawing, world

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def raw():
    return world.generate()


@pytest.fixture(scope="module")
def sheet():
    """Pictures of 2000 items with random attributes, drawn without files."""
    rng = np.random.default_rng(0)
    values = {name: rng.integers(0, len(words), 2000) for name, words in world.WORDS.items()}
    return values, drawing.draw(values, world.WORDS, 0).astype(np.float32) / 255


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 60), st.integers(2, 60), st.floats(0, 1), st.integers(0, 5))
def test_interactions_are_exact_and_distinct(users, items, fill, seed):
    count = users + int(fill * (users * (items // 2) - users))
    raw = world.generate(users=users, items=items, interactions=count, seed=seed)
    assert (
        len(set(zip(raw.user.tolist(), raw.item.tolist(), strict=True))) == count == len(raw.user)
    )
    degrees = np.bincount(raw.user, minlength=users)
    assert degrees.min() >= min(5, count // users)
    assert degrees.max() <= items // 2


def test_columns(raw):
    assert len(raw.user) == 30_000
    assert np.bincount(raw.user, minlength=2000).min() >= 5
    assert set(np.unique(raw.rating)) == {1, 2, 3, 4, 5}
    assert raw.time.min() >= world.START
    assert world.SPAN / 2 < raw.time.max() - raw.time.min() <= world.SPAN
    assert [raw.user.dtype, raw.item.dtype, raw.rating.dtype, raw.time.dtype] == [
        np.int32,
        np.int32,
        np.float32,
        np.int64,
    ]


def test_seeds(raw):
    again, other = world.generate(), world.generate(seed=1)
    np.testing.assert_array_equal(raw.user, again.user)
    np.testing.assert_array_equal(raw.item, again.item)
    np.testing.assert_array_equal(raw.time, again.time)
    assert (raw.texts, raw.attributes) == (again.texts, again.attributes)
    assert raw.attributes != other.attributes
    assert set(zip(raw.user, raw.item, strict=True)) != set(
        zip(other.user, other.item, strict=True)
    )


@pytest.mark.parametrize(
    "options",
    [{"users": 0}, {"items": 1}, {"interactions": 1999}, {"items": 20}, {"missing": 1.5}],
    ids=str,
)
def test_worlds_that_cannot_be(options):
    with pytest.raises(InputError, match=r"--users|--interactions"):
        world.generate(**options)


def test_texts_state_only_what_is_true(raw):
    kinds = {word: name for name, words in world.WORDS.items() for word in words}
    stated = dict.fromkeys(world.WORDS, 0)
    for place, (title, text) in enumerate(zip(raw.titles, raw.texts, strict=True)):
        truth = {name: values[place] for name, values in raw.attributes.items()}
        found = [word for word in re.findall(r"\w+", f"{title} {text}".lower()) if word in kinds]
        for word in found:
            assert truth[kinds[word]] == word, (title, text, truth)
        if title:
            assert title.endswith(truth["category"])
            assert text
        for name in {kinds[word] for word in re.findall(r"\w+", text.lower()) if word in kinds}:
            stated[name] += 1
    assert sum(not text for text in raw.texts) == 20
    assert all(450 < count < 750 for count in stated.values()), stated


def test_words_are_told_apart():
    words = [word for values in world.WORDS.values() for word in values]
    assert len(words) == len(set(words)) == 34


def test_popularity_is_skewed_and_tastes_shared(raw):
    """The neighbourhood of a user's items ranks held-out items far above popularity."""
    data = prepare(raw, name="world", keep_items="all")
    seen = np.zeros((data.n_users, data.n_items), np.float32)
    seen[data.train.user, data.train.item] = 1
    count = seen.sum(axis=0)
    top = np.sort(count)[::-1]
    assert top[:100].sum() > 1.8 * count.mean() * 100
    held = np.zeros_like(seen)
    held[data.test.user, data.test.item] = 1
    known = np.zeros_like(seen)
    words = {name: np.array(values) for name, values in data.attributes.items()}
    onehot = np.concatenate(
        [words[name][:, None] == np.array(world.WORDS[name]) for name in words], axis=1
    ).astype(np.float32)
    norm = np.sqrt(np.maximum(count, 1))
    near = (seen / norm).T @ (seen / norm)
    np.fill_diagonal(near, 0)

    def recall(scores):
        ranks = np.argsort(-np.where(seen > 0, -np.inf, scores), axis=1)[:, :20]
        hits = np.take_along_axis(held, ranks, axis=1).sum(axis=1)
        return (hits / held.sum(axis=1)).mean()

    def standard(scores):
        return (scores - scores.mean(1, keepdims=True)) / scores.std(1, keepdims=True)

    popular, neighbours = recall(np.broadcast_to(count, known.shape)), recall(seen @ near)
    content = (seen @ onehot) @ onehot.T
    both = recall(standard(seen @ near) + standard(content))
    assert neighbours > 2.5 * popular
    assert both > 1.1 * neighbours
    assert recall(content) > 2 * popular


def test_ratings_follow_the_tastes(raw):
    """Within a user, items of the most frequent category are rated higher."""
    category = np.array([world.WORDS["category"].index(w) for w in raw.attributes["category"]])
    table = np.zeros((2000, 8))
    np.add.at(table, (raw.user, category[raw.item]), 1)
    liked = table.argmax(axis=1)[raw.user] == category[raw.item]
    assert raw.rating[liked].mean() > raw.rating[~liked].mean() + 0.5


def nearest_centroid(features, codes):
    """Accuracy on the second half of class means from the first."""
    half = len(codes) // 2
    means = np.stack([features[:half][codes[:half] == c].mean(0) for c in range(codes.max() + 1)])
    gap = ((features[half:, None] - means[None]) ** 2).sum(-1)
    return (gap.argmin(1) == codes[half:]).mean()


def test_pictures_show_the_attributes(sheet):
    """Simple statistics already tell values apart; chance is 1/8, 1/10, 1/6, 1/5, 1/5."""
    values, pixels = sheet
    grey = pixels.mean(-1)
    core = pixels[:, 20:44, 20:44].reshape(len(pixels), -1, 3)
    spread = core.max(-1) - core.min(-1)  # paint is pale or dark: the most colourful pixels are not
    vivid = np.take_along_axis(core, np.argsort(-spread, axis=1)[:, :150, None], axis=1).mean(1)
    assert nearest_centroid(vivid, values["colour"]) > 0.6
    edge = np.concatenate([pixels[:, :5].mean((1, 2)), pixels[:, 5:12].std((1, 2))], axis=1)
    assert nearest_centroid(edge, values["style"]) > 0.95
    bare = values["style"] == world.WORDS["style"].index("minimal")
    outline = (grey[bare] < 0.8).reshape(-1, 16, 4, 16, 4).mean((2, 4)).reshape(bare.sum(), -1)
    assert nearest_centroid(outline, values["category"][bare]) > 0.8
    power = np.abs(
        np.fft.rfft2(grey[:, 18:46, 18:46] - grey[:, 18:46, 18:46].mean((1, 2), keepdims=True))
    )
    power = np.log1p(power[:, :, :14]).reshape(len(grey), -1)
    assert nearest_centroid(power, values["pattern"]) > 0.45
    assert nearest_centroid(power, values["material"]) > 0.5


def test_pictures_on_disk(tmp_path):
    raw = world.generate(users=50, items=300, interactions=500, images=tmp_path, missing=0.1)
    absent = [path for path in raw.images if not path]
    assert len(absent) == 30
    assert raw.images[1] in ("", "images/000/1.jpg")
    written = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.jpg"))
    assert written == sorted(filter(None, raw.images))
    # What is on disk is what `draw` draws for the item's batch, up to JPEG's loss.
    values = {
        name: np.array([world.WORDS[name].index(word) for word in words])
        for name, words in raw.attributes.items()
    }
    last = {name: codes[drawing.BATCH :] for name, codes in values.items()}
    pixels = drawing.draw(last, world.WORDS, drawing.hash_seed(0, drawing.BATCH))
    place = next(n for n in range(drawing.BATCH, 300) if raw.images[n])
    with Image.open(tmp_path / raw.images[place]) as image:
        assert image.size == (64, 64)
        gap = np.abs(np.asarray(image, np.float32) - pixels[place - drawing.BATCH])
    assert gap.mean() < 6
    plain = world.generate(users=50, items=300, interactions=500, missing=0.1)
    np.testing.assert_array_equal(plain.item, raw.item)
    assert plain.texts == raw.texts
