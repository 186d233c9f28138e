"""ResNet against torch: block, every stage, files to vectors; both layouts of names."""

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from support import towers

from mmjax.core.errors import InputError
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.inputs.pixels import ImageOptions
from mmjax.encoders.towers import resnet

TINY = {"embedding_size": 8, "hidden_sizes": [16, 24, 32, 40], "depths": [2, 1, 2, 1]}
VARIANTS = {
    "basic": {"layer_type": "basic"},
    "bottleneck": {},
    "early": {"downsample_in_bottleneck": True, "downsample_in_first_stage": True},
}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module", params=VARIANTS)
def tiny(request, torch, tmp_path_factory):
    """A random ResNet of transformers and the folder of it and its image processor."""
    from transformers import ConvNextImageProcessorPil, ResNetConfig, ResNetModel

    folder = tmp_path_factory.mktemp("tiny")
    ConvNextImageProcessorPil(size={"shortest_edge": 40}).save_pretrained(folder)
    model = ResNetModel(ResNetConfig(**TINY, **VARIANTS[request.param]))
    towers.condition(model)
    return model, towers.save_random(model, folder)


@pytest.fixture(scope="module")
def classic(torch):
    """`make(depths, bottleneck)`: a random ResNet with torchvision's names, stem to fc."""
    from torch import nn

    class Residual(nn.Module):
        def __init__(self, channels, features, stride, bottleneck):
            super().__init__()
            inner = features // 4 if bottleneck else features
            sizes = [inner, inner, features] if bottleneck else [inner, features]
            windows = [1, 3, 1] if bottleneck else [3, 3]
            strides = [1, stride, 1] if bottleneck else [stride, 1]
            befores = [channels, *sizes]
            for n, (size, window, step) in enumerate(zip(sizes, windows, strides, strict=True), 1):
                conv = nn.Conv2d(befores[n - 1], size, window, step, window // 2, bias=False)
                setattr(self, f"conv{n}", conv)
                setattr(self, f"bn{n}", nn.BatchNorm2d(size))
            self.last = len(sizes)
            self.downsample = None
            if channels != features or stride != 1:
                self.downsample = nn.Sequential(
                    nn.Conv2d(channels, features, 1, stride, bias=False), nn.BatchNorm2d(features)
                )

        def forward(self, x):
            y = x
            for n in range(1, self.last + 1):
                y = getattr(self, f"bn{n}")(getattr(self, f"conv{n}")(y))
                y = y.relu() if n < self.last else y
            return (y + (x if self.downsample is None else self.downsample(x))).relu()

    class Classic(nn.Module):
        def __init__(self, depths, bottleneck):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(8)
            self.maxpool = nn.MaxPool2d(3, 2, 1)
            channels = 8
            for n, (size, depth) in enumerate(zip((16, 24, 32, 40), depths, strict=True), 1):
                blocks = [
                    Residual(size if at else channels, size, 1 if at or n == 1 else 2, bottleneck)
                    for at in range(depth)
                ]
                setattr(self, f"layer{n}", nn.Sequential(*blocks))
                channels = size
            self.fc = nn.Linear(channels, 7)

        def forward(self, x):
            nodes = {}
            x = self.maxpool(self.bn1(self.conv1(x)).relu())
            for n in range(1, 5):
                x = nodes[f"layer{n}"] = getattr(self, f"layer{n}")(x)
            nodes["avgpool"] = x.mean((2, 3))
            return {**nodes, "fc": self.fc(nodes["avgpool"])}

    def make(depths, bottleneck):
        torch.manual_seed(0)
        model = Classic(depths, bottleneck).eval()
        with torch.no_grad():
            for name, value in model.state_dict().items():
                if name.endswith("running_mean"):
                    value.normal_(0, 0.1)
                elif name.endswith("running_var"):
                    value.uniform_(0.5, 2)
                elif ("bn" in name or "sample.1" in name) and value.is_floating_point():
                    value.mul_(0.5).add_(0.1 * torch.randn_like(value))
        return model

    return make


def build(folder):
    config = resnet.Config.read(hub.read_config(folder, ("resnet",)))
    return hub.load_module(
        lambda: resnet.ResNet(config, rngs=nnx.Rngs(0)), folder, resnet.key_map(config)
    )


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def to_torch(torch, maps):
    return torch.tensor(maps).permute(0, 3, 1, 2)


@pytest.mark.slow
def test_every_stage_and_the_vector_equal_torch(torch, tiny):
    model, folder = tiny
    x = noise(2, 48, 37, 3)
    with torch.no_grad():
        wanted = model(to_torch(torch, x), output_hidden_states=True)
    graph, params = build(folder)
    got = jax.jit(lambda params, x: hub.merge(graph, params)(x))(params, x)
    states = [state.permute(0, 2, 3, 1) for state in wanted.hidden_states]
    towers.assert_states(got, states)
    np.testing.assert_array_equal(got["last_hidden_state"], got["layer4"])
    pooled = wanted.pooler_output.flatten(1).numpy()
    assert 0.1 < np.abs(pooled).max() < 10
    np.testing.assert_allclose(got["pooler_output"], pooled, atol=1e-5, rtol=0)
    np.testing.assert_array_equal(got["avgpool"], got["pooler_output"])


def test_one_block_equals_torch_on_its_own(torch, tiny):
    model, folder = tiny
    x = noise(2, 9, 8, 16)
    with torch.no_grad():
        wanted = model.encoder.stages[1].layers[0](to_torch(torch, x)).permute(0, 2, 3, 1)
    block = hub.merge(*build(folder)).stages[1][0]
    np.testing.assert_allclose(jax.jit(block.__call__)(x), wanted, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("tiny", ["bottleneck"], indirect=True)
def test_files_become_the_vectors_of_transformers(torch, tiny, tmp_path):
    from transformers import ConvNextImageProcessorPil

    model, folder = tiny
    paths = towers.pictures(tmp_path)
    read = ConvNextImageProcessorPil.from_pretrained(folder)
    with torch.no_grad():
        wanted = model(**read([Image.open(path) for path in paths], return_tensors="pt"))
    layers = ("pooler_output", -1, "layer2:flatten")
    got = towers.encode(resnet.load(weights=str(folder), layers=layers), paths)
    assert list(got) == ["pooler_output", "hidden_states.4:mean", "layer2:flatten"]
    vectors = wanted.pooler_output.flatten(1).numpy()
    np.testing.assert_allclose(got["pooler_output"], vectors, atol=1e-4, rtol=0)
    np.testing.assert_allclose(got["hidden_states.4:mean"], vectors, atol=1e-4, rtol=0)
    near = towers.encode(resnet.load(weights=str(folder), dtype="bfloat16"), paths)["pooler_output"]
    cosine = (
        (near * vectors).sum(1) / np.linalg.norm(near, axis=1) / np.linalg.norm(vectors, axis=1)
    )
    assert (cosine > 0.99).all()
    assert (near != got["pooler_output"]).any()


@pytest.mark.slow
def test_a_classifier_gives_logits_too(torch, tmp_path):
    from transformers import ResNetConfig, ResNetForImageClassification

    model = ResNetForImageClassification(ResNetConfig(**TINY, num_labels=5))
    towers.condition(model)
    folder = towers.save_random(model, tmp_path)
    tower = resnet.load(weights=str(folder), layers=["logits", "pooler_output"])
    assert tower.layers == {"logits": 5, "pooler_output": 40}
    (batch,) = tower.batches(towers.pictures(tmp_path), 3)
    x = resnet.PIXELS.normalize(batch.arrays[0])
    with torch.no_grad():
        wanted = model(to_torch(torch, np.asarray(x))).logits
    logits, _ = tower.encode(tower.params, *batch.arrays)
    np.testing.assert_allclose(logits, wanted.numpy(), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "bottleneck"), [(".pt", True), (".safetensors", False)])
def test_torchvisions_names_tell_the_architecture(torch, classic, tmp_path, bottleneck, suffix):
    from safetensors.torch import save_file

    model = classic((2, 1, 3, 1), bottleneck)
    file = tmp_path / f"model{suffix}"
    save_file(model.state_dict(), file) if suffix != ".pt" else torch.save(model.state_dict(), file)
    (tmp_path / "config.json").write_text('{"architecture": "resnet50"}')  # as timm's folders have
    config = resnet.Config.infer(file)
    assert config.layer_type == ("bottleneck" if bottleneck else "basic")
    assert (config.embedding_size, config.hidden_sizes) == (8, (16, 24, 32, 40))
    assert config.depths == (2, 1, 3, 1)

    paths = towers.pictures(tmp_path)
    layers = ["avgpool", "fc", *(f"layer{n}:flatten" for n in range(1, 5))]
    weights = str(file if suffix == ".pt" else tmp_path)
    got = towers.encode(resnet.load(weights=weights, layers=layers), paths)
    with torch.no_grad():
        wanted = model(to_torch(torch, np.stack([imagenet(path) for path in paths])))
    for (name, values), layer in zip(got.items(), layers, strict=True):
        assert name == layer
        theirs = wanted[name.removesuffix(":flatten")].flatten(1).numpy()
        np.testing.assert_allclose(values, theirs, atol=1e-4, rtol=0)


def imagenet(path):
    """Torchvision's transform for IMAGENET1K_V1, in NumPy, for sizes it crops evenly."""
    image = Image.open(path).convert("RGB")
    width, height = image.size
    scale = 256 / min(width, height)
    image = image.resize((int(width * scale), int(height * scale)), Image.Resampling.BILINEAR)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    pixels = np.asarray(image, np.float32)[top : top + 224, left : left + 224] / 255
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    return (pixels - mean) / std


def test_prefixes_and_heads_of_training_code_are_no_obstacle(torch, classic, tmp_path):
    model = classic((1, 1, 1, 1), True)
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    wanted = resnet.load(weights=str(tmp_path / "plain.pt")).params
    own = {key: value for key, value in model.state_dict().items() if not key.startswith("fc.")}
    heads = {
        "backbone.fc.weight": torch.zeros(5, 11),  # does not fit what is before it
        "attr_predictor.linear_attr.weight": torch.zeros(3, 3),
        "landmark_regression.linear.bias": torch.zeros(3),
        "neck.0.weight": torch.zeros(2),
    }
    for prefix in ("backbone.", "module.model."):
        state = {prefix + key: value for key, value in own.items()}
        torch.save({"state_dict": {**state, **heads}, "epoch": 3}, tmp_path / "wrapped.pth")
        tower = resnet.load(weights=str(tmp_path / "wrapped.pth"))
        del_head = {key: value for key, value in wanted.items() if key != "classifier"}
        jax.tree.map(np.testing.assert_array_equal, tower.params, del_head)
        assert tower.layers == {"pooler_output": 40}
    torch.save({**state, "decoder.weight": torch.zeros(2)}, tmp_path / "odd.pth")
    with pytest.raises(InputError, match=r"decoder\.weight is not in the key map"):
        resnet.load(weights=str(tmp_path / "odd.pth"))


def test_checkpoints_that_are_no_resnet_are_refused(torch, classic, tmp_path):
    state = classic((1, 2, 1, 1), False).state_dict()
    for missing, message in (
        ("conv1.weight", "no whole ResNet"),
        ("layer2.1.conv2.weight", r"nothing fills stages\.1\.1\.convs\.1\.conv\.kernel"),
    ):
        part = {key: value for key, value in state.items() if key != missing}
        torch.save(part, tmp_path / "part.pt")
        with pytest.raises(InputError, match=message):
            resnet.load(weights=str(tmp_path / "part.pt"))
    torch.save({"bert.weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="no checkpoint folder"):
        resnet.load(weights=str(tmp_path / "other.pt"))
    torch.save(state, tmp_path / "whole.pt")
    with pytest.raises(InputError, match="no layer 'layer5'; did you mean layer"):
        resnet.load(weights=str(tmp_path / "whole.pt"), layers=["layer5"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "swoosh"}, "swoosh"),
        ({"layer_type": "preact"}, "'preact' is not basic or bottleneck"),
        ({"num_channels": 1}, "1 channels"),
        ({"depths": None}, "lacks depths"),
    ],
)
def test_variants_that_would_compute_something_else_are_refused(change, message):
    config = {**TINY, "layer_type": "basic"} | change
    with pytest.raises(InputError, match=message):
        resnet.Config.read({key: value for key, value in config.items() if value is not None})


def test_reshape_is_duchos_preprocessing(torch, classic, tmp_path):
    torch.save(classic((1, 1, 1, 1), False).state_dict(), tmp_path / "net.pt")
    tower = resnet.load(weights=str(tmp_path / "net.pt"), options=ImageOptions(reshape=(224, 224)))
    paths = towers.pictures(tmp_path)
    (batch,) = tower.batches(paths, 3)
    for pixels, path in zip(batch.arrays[0], paths, strict=True):
        whole = Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(pixels, np.asarray(whole))
    assert "mean (0.485, 0.456, 0.406)" in tower.about["preprocessing"]
