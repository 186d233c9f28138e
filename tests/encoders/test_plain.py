"""The encoders without a network: what they see, and that they always see the same."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mmjax.encoders.core import stream
from mmjax.encoders.inputs import images
from mmjax.encoders.towers import plain_image, plain_text

TEXTS = (
    ["the red cat sleeps", "a red cat naps", "red cats and the cat", "cat's paw red cat"] * 3
    + ["stock markets fell", "markets rose; stock prices fell", "the stock exchange markets"] * 3
    + ["", "unheard-of singularity"]
)


def run_here(paths, size=8):
    def run(batches, encode, params):
        return stream(batches(paths, size), encode, params)

    return run


def paint(path, colour, pattern, seed):
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (90 + int(rng.integers(40)), 130), "white")
    draw = ImageDraw.Draw(image)
    left, top = rng.integers(5, 25, 2)
    for k in range(0, 100, 8):
        box = {"across": (left, top + k, left + 60, top + k + 3), "down": (k, top, k + 3, top + 90)}
        draw.rectangle(box[pattern], fill=colour)
    image.save(path)
    return str(path)


@pytest.mark.slow
def test_neighbours_share_colour_and_texture(tmp_path):
    kinds = [(c, p) for c in ("crimson", "navy", "green") for p in ("across", "down")]
    labels = [kind for kind in kinds for _ in range(6)]
    paths = [paint(tmp_path / f"{i}.png", *kind, i) for i, kind in enumerate(labels)]
    features = plain_image.load().fit(paths, run_here(paths))
    assert features.shape == (36, 35)
    near = features @ features.T
    np.fill_diagonal(near, -np.inf)
    agree = [labels[i] == labels[j] for i, j in enumerate(near.argmax(axis=1))]
    assert np.mean(agree) >= 0.9


def test_oklab_of_known_colours():
    rgb = np.array([[1.0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1]], np.float32)
    wanted = [[1, 0, 0], [0, 0, 0], [0.62796, 0.22486, 0.12585], [0.45201, -0.03246, -0.31153]]
    np.testing.assert_allclose(plain_image.oklab(rgb), wanted, atol=2e-4)


@pytest.mark.slow
def test_gradients_tell_orientation_and_palette_adds_up():
    stripes = np.zeros((1, 64, 64), np.float32)
    stripes[:, :, ::4] = 1
    down = np.asarray(plain_image.gradients(stripes)).sum(axis=(0, 1, 2))
    across = np.asarray(plain_image.gradients(stripes.transpose(0, 2, 1))).sum(axis=(0, 1, 2))
    assert down.argmax() == 0
    assert across.argmax() in (4, 5)  # a right angle is half way round nine bins
    lab = np.random.default_rng(0).normal(0.3, 0.2, (2, 64, 64, 3)).astype(np.float32)
    np.testing.assert_allclose((plain_image.palette(lab) ** 2).sum(axis=(1, 2, 3)), 1, atol=1e-4)


@pytest.mark.slow
def test_components_are_uncorrelated_deterministic_and_of_unit_length_on_average():
    described = np.random.default_rng(0).normal(size=(60, sum(plain_image.BLOCKS)))
    described = described.astype(np.float32)
    one = plain_image.compress(described, 12)
    np.testing.assert_array_equal(one, plain_image.compress(described.copy(), 12))
    covariance = one.T @ one
    apart = covariance - np.diag(np.diag(covariance))
    assert np.abs(apart).max() < 1e-4 * covariance.max()
    np.testing.assert_allclose((one**2).sum(axis=1).mean(), 1, rtol=1e-5)
    same = plain_image.compress(np.ones_like(described), 4)
    assert not same.any()  # a catalogue of one picture says nothing


def test_images_that_cannot_be_read_say_why(tmp_path):
    paint(tmp_path / "good.png", "red", "down", 0)
    (tmp_path / "text.jpg").write_text("not a picture")
    content = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    names = ["text.jpg", "good.png", "cut.png", "none.png"]
    (batch,) = images.pixel_batches(
        [str(tmp_path / name) for name in names], 8, plain_image.squeeze, (64, 64)
    )
    assert batch.rows.tolist() == [1]
    assert batch.arrays[0].shape == (8, 64, 64, 3)
    assert set(batch.failed) == {0, 2, 3}
    assert batch.failed[0] == "not an image"
    assert batch.failed[3] == "no such file"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "CMYK", "1", "I;16"])
def test_every_kind_of_image_becomes_rgb(tmp_path, mode):
    array = np.full((20, 30), 255, np.uint16 if mode == "I;16" else np.uint8)
    image = Image.fromarray(array)
    image = image if mode == "I;16" else image.convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(0)
    path = tmp_path / f"image.{'tiff' if mode == 'CMYK' else 'png'}"
    image.save(path)
    pixels = np.asarray(images.read(str(path), 10_000))
    assert pixels.shape == (20, 30, 3)
    if mode != "I;16":
        assert (pixels == 255).all()  # white, also where it is transparent


def test_tf_idf_equals_scikit_learn():
    reference = pytest.importorskip("sklearn.feature_extraction.text")
    vectorizer = reference.TfidfVectorizer(
        tokenizer=plain_text.words, lowercase=False, token_pattern=None, min_df=2, sublinear_tf=True
    )
    wanted = vectorizer.fit_transform(TEXTS)
    np.testing.assert_allclose(plain_text.tf_idf(TEXTS, 2).toarray(), wanted.toarray(), atol=1e-12)


def test_words_are_folded_and_split():
    assert plain_text.words("The CAT’s paw, re-used: ﬁne_art x2 Ünïcode 北京") == [
        "the", "cat’s", "paw", "re", "used", "fine", "art", "x2", "ünïcode", "北京",
    ]  # fmt: skip


def test_svd_by_iteration_equals_the_dense_one():
    rng = np.random.default_rng(0)
    words = np.array([f"w{i}" for i in range(80)])
    texts = [" ".join(rng.choice(words, 12)) for _ in range(90)]
    weights = plain_text.tf_idf(texts, 1)
    few = plain_text.reduce(weights, 5)  # by iteration
    u, s, vt = np.linalg.svd(weights.toarray(), full_matrices=False)
    largest = np.take_along_axis(vt, np.abs(vt).argmax(axis=1)[:, None], axis=1)[:, 0]
    wanted = (u * s * np.sign(largest))[:, :5]
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(few, wanted, atol=1e-5)
    np.testing.assert_array_equal(few, plain_text.reduce(weights, 5))


def test_texts_of_one_topic_are_near_and_empty_ones_are_nothing():
    features = plain_text.load(width=2).fit(TEXTS, None)
    assert features.shape == (len(TEXTS), 2)
    near = features @ features.T
    assert near[0, 1] > 0.7 > 0.3 > near[0, 12]
    assert not features[-2:].any()  # no word, or none that another text shares
    assert plain_text.load().fit(["one", "two"], None).shape == (2, 1)
