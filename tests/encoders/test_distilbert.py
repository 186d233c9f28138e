"""DistilBERT against torch: layers, heads, texts to vectors."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from support import towers
from support.towers import assert_states, save_random

from mmjax.core.errors import InputError
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.inputs import text
from mmjax.encoders.towers import bert, distilbert

WORDS = ["a", "red", "cat", "sat", "on", "the", "mat", "and", "big", "dogs", "ran", "by"]
TINY = {
    "vocab_size": 30,
    "dim": 32,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 64,
    "max_position_embeddings": 40,
    "sinusoidal_pos_embds": True,  # says only how they began
}
TEXTS = ["A red cat sat on the mat.", "dogs", "a cat and the dogs " * 12, ""]


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def save(kind, folder):
    """A random model of transformers, saved with a tokenizer."""
    import transformers

    cls = getattr(transformers, kind)
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    vocab = {name: n for n, name in enumerate(names)}
    transformers.BertTokenizer(vocab=vocab).save_pretrained(folder)
    model = cls(transformers.DistilBertConfig(**TINY))
    save_random(model, folder)
    return model


@pytest.fixture(scope="module")
def tiny(torch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return save("DistilBertModel", folder), folder


def build(folder):
    config = distilbert.read_config(hub.read_config(folder, ("distilbert",)))
    return hub.merge(
        *hub.load_module(
            lambda: bert.Bert(config, pooler=False, rngs=nnx.Rngs(0)), folder, distilbert.key_map()
        )
    )


@pytest.mark.slow
def test_every_layer_equals_torch(torch, tiny):
    model, folder = tiny
    ids = np.random.default_rng(0).integers(0, 30, (3, 17))
    mask = np.arange(17) < np.array([[17], [9], [2]])
    with torch.no_grad():
        wanted = model(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask.astype(np.int64)),
            output_hidden_states=True,
        )
    assert_states(jax.jit(build(folder).__call__)(ids, mask), wanted.hidden_states, mask)


def test_one_block_equals_torch_on_its_own(torch, tiny):
    model, folder = tiny
    x = np.random.default_rng(1).normal(size=(2, 5, 32)).astype(np.float32)
    with torch.no_grad():
        wanted = model.transformer.layer[1](torch.tensor(x))
    np.testing.assert_allclose(build(folder).blocks[1](x), wanted.numpy(), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        "DistilBertModel",
        "DistilBertForMaskedLM",
        "DistilBertForSequenceClassification",
        "DistilBertForQuestionAnswering",
    ],
)
def test_texts_equal_torch_whatever_the_head(torch, kind, tmp_path):
    model = save(kind, tmp_path)
    tokens = hub.tokenizer(tmp_path)(
        TEXTS, padding=True, truncation=True, max_length=40, return_tensors="pt"
    )
    there = tokens["attention_mask"]
    with torch.no_grad():
        states = model.base_model(tokens["input_ids"], there).last_hidden_state
    wanted = ((states * there[..., None]).sum(1) / there.sum(1, keepdim=True)).numpy()
    (vectors,) = towers.encode(distilbert.load(weights=str(tmp_path)), TEXTS, 2).values()
    np.testing.assert_allclose(vectors, wanted, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_bfloat16_stays_near(tiny):
    _, folder = tiny
    (full,) = towers.encode(distilbert.load(weights=str(folder)), TEXTS).values()
    (half,) = towers.encode(distilbert.load(weights=str(folder), dtype="bfloat16"), TEXTS).values()
    norms = np.linalg.norm(full, axis=1) * np.linalg.norm(half, axis=1)
    assert ((full * half).sum(axis=1) / norms > 0.99).all()


def test_what_it_does_not_have_is_said(tiny):
    _, folder = tiny
    with pytest.raises(InputError, match="no pooler; pool by mean, cls or max"):
        distilbert.load(weights=str(folder), options=text.TextOptions(pooling="pooler"))
    config = json.loads((folder / "config.json").read_text())
    del config["n_heads"]
    with pytest.raises(InputError, match="lacks n_heads"):
        distilbert.read_config(config)
    with pytest.raises(InputError, match="swoosh"):
        distilbert.read_config({**TINY, "activation": "swoosh"})
