"""MPNet against torch: buckets of distances, layers, sentence-transformers' recipe."""

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
from mmjax.encoders.towers import mpnet

WORDS = ["a", "red", "cat", "sat", "on", "the", "mat", "and", "big", "dogs", "ran", "by"]
TINY = {
    "vocab_size": 30,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 202,
    "layer_norm_eps": 1e-5,
}
TEXTS = ["A red cat sat on the mat.", "dogs", "a cat and the dogs " * 50, ""]


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def tiny(torch, tmp_path_factory):
    """A random MPNet of transformers and its folder, as sentence-transformers lays it out."""
    from transformers import MPNetConfig, MPNetModel, MPNetTokenizer

    folder = tmp_path_factory.mktemp("tiny")
    names = ["<s>", "<pad>", "</s>", "<unk>", *WORDS, "[UNK]", "<mask>"]
    vocab = {name: n for n, name in enumerate(names)}
    MPNetTokenizer(vocab=vocab).save_pretrained(folder)
    kind = "sentence_transformers.models."
    modules = ["Transformer", "Pooling", "Normalize"]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"type": kind + name, "path": path} for name, path in zip(modules, paths, strict=True)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 150}))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    model = MPNetModel(MPNetConfig(**TINY))
    return model, save_random(model, folder)


def build(folder):
    config = mpnet.read_config(hub.read_config(folder, ("mpnet",)))
    return hub.merge(
        *hub.load_module(lambda: mpnet.Mpnet(config, rngs=nnx.Rngs(0)), folder, mpnet.key_map())
    )


def test_buckets_of_distances_equal_torch(torch):
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    places = torch.arange(514)
    wanted = MPNetEncoder.relative_position_bucket(places[None, :] - places[:, None])
    np.testing.assert_array_equal(mpnet.buckets(514), wanted.numpy())


@pytest.mark.slow
def test_every_layer_and_the_pooler_equal_torch(torch, tiny):
    model, folder = tiny
    mask = np.arange(200) < np.array([[200], [90], [2]])
    ids = np.where(mask, np.random.default_rng(0).integers(2, 30, mask.shape), 1)
    with torch.no_grad():
        wanted = model(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask.astype(np.int64)),
            output_hidden_states=True,
        )
    got = jax.jit(build(folder).__call__)(ids, mask)
    assert_states(got, wanted.hidden_states, mask)
    np.testing.assert_allclose(
        got["pooler_output"], wanted.pooler_output.numpy(), atol=1e-4, rtol=0
    )


def test_one_block_with_a_bias_equals_torch_on_its_own(torch, tiny):
    model, folder = tiny
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 5, 32)).astype(np.float32)
    bias = rng.normal(size=(1, 4, 5, 5)).astype(np.float32)
    with torch.no_grad():
        (wanted,) = model.encoder.layer[1](torch.tensor(x), position_bias=torch.tensor(bias))
    got = build(folder).blocks[1](x, bias=bias)
    np.testing.assert_allclose(got, wanted.numpy(), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_texts_equal_torch_by_the_recipe(torch, tiny):
    model, folder = tiny
    tokens = hub.tokenizer(folder)(
        TEXTS, padding=True, truncation=True, max_length=150, return_tensors="pt"
    )
    there = tokens["attention_mask"]
    with torch.no_grad():
        states = model(**tokens).last_hidden_state
        wanted = (states * there[..., None]).sum(1) / there.sum(1, keepdim=True)
        wanted = torch.nn.functional.normalize(wanted, dim=1).numpy()
    tower = mpnet.load(weights=str(folder))
    (vectors,) = towers.encode(tower, TEXTS, 2).values()
    np.testing.assert_allclose(vectors, wanted, atol=1e-4, rtol=0)
    assert max(batch.arrays[0].shape[1] for batch in tower.batches(TEXTS, 2)) == 150
    with pytest.raises(InputError, match="over the model's 200 tokens"):
        mpnet.load(weights=str(folder), options=text.TextOptions(max_length=201))


@pytest.mark.slow
@pytest.mark.parametrize("head", ["MaskedLM", "SequenceClassification", "QuestionAnswering"])
def test_heads_are_left_aside(torch, head, tmp_path):
    import transformers

    model = getattr(transformers, f"MPNetFor{head}")(transformers.MPNetConfig(**TINY))
    save_random(model, tmp_path)
    ids, mask = np.array([[0, 5, 6, 2]]), np.ones((1, 4), bool)
    with torch.no_grad():
        wanted = model.mpnet(torch.tensor(ids)).last_hidden_state
    assert not hub.has(tmp_path, r"mpnet\.pooler\..*")
    config = mpnet.read_config(hub.read_config(tmp_path, ("mpnet",)))
    module = hub.merge(
        *hub.load_module(
            lambda: mpnet.Mpnet(config, pooler=False, rngs=nnx.Rngs(0)), tmp_path, mpnet.key_map()
        )
    )
    got = jax.jit(module.__call__)(ids, mask)["last_hidden_state"]
    np.testing.assert_allclose(got, wanted.numpy(), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_bfloat16_stays_near(tiny):
    _, folder = tiny
    (full,) = towers.encode(mpnet.load(weights=str(folder)), TEXTS).values()
    (half,) = towers.encode(mpnet.load(weights=str(folder), dtype="bfloat16"), TEXTS).values()
    assert ((full * half).sum(axis=1) > 0.99).all()


def test_another_number_of_buckets_is_refused():
    with pytest.raises(InputError, match="64 buckets"):
        mpnet.read_config({**TINY, "relative_attention_num_buckets": 64})
