"""Images with their texts: what belongs together stays together."""

import numpy as np
import pytest
from PIL import Image

from mmjax.encoders.inputs import images, pairs, text

SIZE = 4


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import BertTokenizer

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(20))]
    return BertTokenizer(vocab={name: n for n, name in enumerate(names)})


def batches(tokenizer, inputs, size=SIZE):
    def pictures(paths, size):
        return images.pixel_batches(paths, size, np.asarray, (6, 8))

    def sentences(texts, size):
        return text.token_batches(tokenizer, texts, size, 20, text.TextOptions())

    return list(pairs.pair_batches(inputs, size, pictures, sentences))


@pytest.fixture
def inputs(tmp_path):
    """Pair n: an image of grey n, and n times the word wn."""
    found = []
    for n in range(20):
        path = tmp_path / f"{n}.png"
        if n not in (3, 11):  # not there
            Image.new("RGB", (8, 6), (n, n, n)).save(path)
        found.append((str(path), f"w{n} " * n))
    (tmp_path / "7.png").write_text("not a picture")
    return found


def test_pictures_stay_with_their_texts(tokenizer, inputs):
    made = batches(tokenizer, inputs)
    seen = []
    for batch in made:
        pixels, ids, mask = batch.arrays
        assert pixels.shape == (SIZE, 6, 8, 3)
        assert ids.shape == mask.shape == (SIZE, ids.shape[1])
        for line, n in enumerate(batch.rows):
            seen.append(int(n))
            count = min(n, 18)  # of twenty tokens two begin and end the text
            assert (pixels[line] == n).all()
            assert mask[line].sum() == count + 2
            assert (ids[line, 1 : count + 1] == 5 + n).all()
        assert not mask[len(batch.rows) :].any()
    assert sorted(seen) == [n for n in range(20) if n not in (3, 7, 11)]
    assert sum(batch.cut for batch in made) == 1
    failed = {n: why for batch in made for n, why in batch.failed.items()}
    assert failed == {3: "no such file", 7: "not an image", 11: "no such file"}


def test_a_batch_without_one_picture_says_why(tokenizer):
    (batch,) = batches(tokenizer, [("", "w1"), ("nowhere.png", "")])
    assert len(batch.rows) == 0
    assert batch.failed == {0: "no such file", 1: "no such file"}
    assert batch.arrays[0].shape == (SIZE, 6, 8, 3)
    assert batches(tokenizer, []) == []
