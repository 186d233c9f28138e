"""sentence-transformers' Dense modules behind a pooled BERT, as LaBSE and distiluse have them."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file
from support import towers
from support.towers import save_random

from mmjax.core.errors import InputError
from mmjax.encoders.checkpoints import dense, hub
from mmjax.encoders.towers import bert

WORDS = ["a", "red", "cat", "sat", "on", "the", "mat", "and", "big", "dogs", "ran", "by"]
TEXTS = ["A red cat sat on the mat.", "dogs", "a cat and the big dogs ran by the mat"]
TINY = {
    "vocab_size": 30,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def tiny(torch, tmp_path_factory):
    """A random BERT, its folder with two Dense modules, and those as torch has them."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("tiny")
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    BertTokenizer(vocab={name: n for n, name in enumerate(names)}).save_pretrained(folder)
    model = BertModel(BertConfig(**TINY))
    save_random(model, folder)
    paths = ["", "1_Pooling", "2_Dense", "3_Dense", "4_Normalize"]
    modules = [
        {"type": f"sentence_transformers.models.{path[2:] or 'Transformer'}", "path": path}
        for path in paths
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    for path in paths[1:4]:
        (folder / path).mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    about = {"in_features": 32, "out_features": 24, "bias": True}
    about["activation_function"] = "torch.nn.modules.activation.Tanh"
    (folder / "2_Dense/config.json").write_text(json.dumps(about))
    first, second = torch.nn.Linear(32, 24), torch.nn.Linear(24, 20, bias=False)
    weights = {f"linear.{name}": value.numpy() for name, value in first.state_dict().items()}
    save_file(weights, folder / "2_Dense/model.safetensors")
    about = {"in_features": 24, "out_features": 20, "bias": False}
    about["activation_function"] = "torch.nn.modules.linear.Identity"
    (folder / "3_Dense/config.json").write_text(json.dumps(about))
    weights = {f"linear.{name}": value for name, value in second.state_dict().items()}
    torch.save(weights, folder / "3_Dense/pytorch_model.bin")
    return model, folder, first, second


@pytest.mark.slow
def test_pooled_vectors_go_through_the_layers(torch, tiny):
    model, folder, first, second = tiny
    tokens = hub.tokenizer(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        vectors = second(torch.tanh(first(model(**tokens).last_hidden_state[:, 0])))
        wanted = torch.nn.functional.normalize(vectors, dim=1).numpy()
    tower = bert.load(weights=str(folder), layers=["sentence_embedding", -1])
    found = towers.encode(tower, TEXTS)
    np.testing.assert_allclose(found["sentence_embedding"], wanted, atol=1e-4, rtol=0)
    assert tower.layers == {"sentence_embedding": 20, "hidden_states.2:cls": 32}
    half = bert.load(weights=str(folder), dtype="bfloat16")
    (near,) = towers.encode(half, TEXTS).values()
    assert ((near * wanted).sum(axis=1) > 0.99).all()


def test_other_layers_are_another_recipe(tiny, tmp_path):
    _, folder, *_ = tiny
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    about = bert.load(weights=str(folder)).about["sentence_embedding"]
    assert about.startswith("cls, dense 2_Dense (sha256:")
    assert about.endswith("), normalized")
    weights = {"linear.weight": np.ones((24, 32), np.float32), "linear.bias": np.ones(24)}
    save_file(weights, tmp_path / "2_Dense/model.safetensors")
    assert bert.load(weights=str(tmp_path)).about["sentence_embedding"] != about


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_function": "torch.nn.modules.activation.Swoosh"}, "Dense with Swoosh, none"),
        ({"module_input_name": "token_embeddings"}, "Dense of token_embeddings"),
        ({"out_features": 25}, r"linear\.kernel needs \(32, 25\)"),
        ({"in_features": None}, "lacks in_features"),
    ],
)
def test_layers_that_would_compute_something_else_are_refused(tiny, tmp_path, change, message):
    shutil.copytree(tiny[1] / "2_Dense", tmp_path, dirs_exist_ok=True)
    about = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match=message):
        dense.read(tmp_path, np.float32)
