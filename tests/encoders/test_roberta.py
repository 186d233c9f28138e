"""RoBERTa, XLM-RoBERTa and CamemBERT against torch: positions, tokenizers, heads, texts."""

import jax
import numpy as np
import pytest
from flax import nnx
from support import towers
from support.towers import assert_states, save_random

from mmjax.core.errors import InputError
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.inputs import text
from mmjax.encoders.towers import bert, roberta

WORDS = ["a", "red", "cat", "sat", "on", "the", "mat", "and", "big", "dogs", "ran", "by"]
TINY = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 42,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}
TEXTS = ["A red cat sat on the mat.", "dogs", "a cat and the dogs " * 12, "", "red <pad> cat"]


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module", params=["Roberta", "XLMRoberta"])
def tiny(request, torch, tmp_path_factory):
    """A random model of transformers and the folder of it and its tokenizer."""
    import transformers

    config = getattr(transformers, f"{request.param}Config")(**TINY)
    model = getattr(transformers, f"{request.param}Model")(config)
    folder = tmp_path_factory.mktemp("tiny")
    {"Roberta": byte_pairs, "XLMRoberta": unigrams}[request.param](folder)
    return model, save_random(model, folder)


def byte_pairs(folder):
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaTokenizer

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([" ".join(WORDS)] * 3, vocab_size=300, special_tokens=special)
    trained.save_model(str(folder))
    RobertaTokenizer.from_pretrained(folder).save_pretrained(folder)


def unigrams(folder):
    from transformers import XLMRobertaTokenizer

    words = [("▁" + word, -1.0) for word in WORDS]
    special = [(name, 0.0) for name in ("<s>", "<pad>", "</s>", "<unk>")]
    XLMRobertaTokenizer(vocab=[*special, *words, ("<mask>", 0.0)]).save_pretrained(folder)


def build(folder):
    given = hub.read_config(folder, roberta.MODEL_TYPES)
    config, padding = bert.Config.read(given), roberta.padding_of(given)
    return hub.merge(
        *hub.load_module(
            lambda: bert.Bert(config, padding=padding, rngs=nnx.Rngs(0)),
            folder,
            bert.key_map("roberta"),
        )
    )


def pooled_by_torch(torch, model, folder, texts=TEXTS, length=40):
    tokens = hub.tokenizer(folder)(
        texts, padding=True, truncation=True, max_length=length, return_tensors="pt"
    )
    with torch.no_grad():
        states = model(**tokens).last_hidden_state
    there = tokens["attention_mask"][..., None]
    return ((states * there).sum(1) / there.sum(1)).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("side", ["right", "left"])
def test_every_layer_and_the_pooler_equal_torch(torch, tiny, side):
    model, folder = tiny
    rng = np.random.default_rng(0)
    mask = np.arange(17) < np.array([[17], [9], [2]])
    mask = mask if side == "right" else mask[:, ::-1].copy()
    ids = np.where(mask, rng.integers(2, 300, mask.shape), 1)
    with torch.no_grad():
        wanted = model(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask.astype(np.int64)),
            output_hidden_states=True,
        )
    got = jax.jit(build(folder).__call__)(ids, mask)
    assert_states(got, wanted.hidden_states, mask)
    first = mask[:, 0]
    np.testing.assert_allclose(
        got["pooler_output"][first], wanted.pooler_output.numpy()[first], atol=1e-4, rtol=0
    )


def test_positions_count_tokens_after_the_padding():
    ids = np.array([[5, 1, 6, 1, 1], [1, 1, 7, 8, 9]])  # a text may hold the padding's id itself
    mask = np.array([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]], bool)
    np.testing.assert_array_equal(
        bert.count_tokens(ids, mask, 1), [[2, 1, 3, 1, 1], [1, 1, 2, 3, 4]]
    )


@pytest.mark.slow
def test_texts_equal_torch(torch, tiny):
    model, folder = tiny
    tower = roberta.load(weights=str(folder))
    (vectors,) = towers.encode(tower, TEXTS, 2).values()
    wanted = pooled_by_torch(torch, model, folder)
    np.testing.assert_allclose(vectors, wanted, atol=1e-4, rtol=0)
    assert sum(batch.cut for batch in tower.batches(TEXTS, 2)) == 1
    with pytest.raises(InputError, match="max_length 41 is over the model's 40 tokens"):
        roberta.load(weights=str(folder), options=text.TextOptions(max_length=41))


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        "RobertaForMaskedLM",
        "RobertaForSequenceClassification",
        "RobertaForQuestionAnswering",
        "XLMRobertaForTokenClassification",
        "CamembertForMaskedLM",
        "CamembertModel",
    ],
)
def test_heads_are_left_aside(torch, kind, tmp_path):
    import transformers

    cls = getattr(transformers, kind)
    model = cls(cls.config_class(**TINY))
    save_random(model, tmp_path)
    unigrams(tmp_path)
    texts = TEXTS[:2]
    (vectors,) = towers.encode(roberta.load(weights=str(tmp_path)), texts).values()
    wanted = pooled_by_torch(torch, model.base_model, tmp_path, texts)
    np.testing.assert_allclose(vectors, wanted, atol=1e-4, rtol=0)
    if kind != "CamembertModel":
        with pytest.raises(InputError, match="no pooler"):
            roberta.load(weights=str(tmp_path), options=text.TextOptions(pooling="pooler"))


@pytest.mark.slow
def test_bfloat16_stays_near(tiny):
    _, folder = tiny
    (full,) = towers.encode(roberta.load(weights=str(folder)), TEXTS).values()
    (half,) = towers.encode(roberta.load(weights=str(folder), dtype="bfloat16"), TEXTS).values()
    norms = np.linalg.norm(full, axis=1) * np.linalg.norm(half, axis=1)
    assert ((full * half).sum(axis=1) / norms > 0.99).all()


def test_another_architecture_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(
        InputError, match="'bert' model, not of roberta or xlm-roberta or camembert"
    ):
        roberta.load(weights=str(tmp_path))
