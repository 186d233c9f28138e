"""ViT against torch: the resize of positions, one block, the whole model, files to vectors."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from support import towers
from support.towers import assert_states, save_random

from mmjax.core.errors import InputError
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.inputs.pixels import ImageOptions
from mmjax.encoders.towers import vit

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 48,
    "patch_size": 8,
}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def tiny(torch, tmp_path_factory):
    """A random ViT of transformers and the folder of it and its image processor."""
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    folder = tmp_path_factory.mktemp("tiny")
    model = ViTModel(ViTConfig(**TINY))
    ViTImageProcessorPil(size={"height": 48, "width": 48}).save_pretrained(folder)
    return model, save_random(model, folder)


def build(folder, *, pooler=True):
    config = vit.Config.read(hub.read_config(folder, ("vit",)))
    made = hub.load_module(
        lambda: vit.Vit(config, pooler=pooler, rngs=nnx.Rngs(0)), folder, vit.key_map()
    )
    return hub.merge(*made)


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("grid", [(16, 16), (3, 50), (37, 36)])
def test_positions_are_resized_as_torch_resizes(torch, grid, antialias):
    table = noise(37 * 37, 5)
    wanted = torch.nn.functional.interpolate(
        torch.tensor(table.reshape(1, 37, 37, 5)).permute(0, 3, 1, 2),
        size=grid,
        mode="bicubic",
        align_corners=False,
        antialias=antialias,
    )
    wanted = wanted.permute(0, 2, 3, 1).reshape(-1, 5).numpy()
    np.testing.assert_allclose(vit.resized(table, grid, antialias), wanted, atol=1e-5, rtol=0)
    assert vit.resized(table, (37, 37)) is table


def test_patches_equal_torchs_convolution(torch, tiny):
    model, folder = tiny
    x = noise(2, 50, 41, 3)  # what is left over is cut off
    with torch.no_grad():
        convolution = model.embeddings.patch_embeddings.projection
        wanted = convolution(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    patches = build(folder).tokens.patches
    got = jax.jit(patches.__call__)(x)
    assert got.shape == (2, 6, 5, 32)
    np.testing.assert_allclose(got, wanted.numpy(), atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="images of 7 x 41 hold no patch of 8 x 8"):
        patches(x[:, :7])


def test_one_block_equals_torch_on_its_own(torch, tiny):
    model, folder = tiny
    x = noise(2, 5, 32)
    with torch.no_grad():
        wanted = model.layers[1](torch.tensor(x))
    np.testing.assert_allclose(
        jax.jit(build(folder).blocks[1].__call__)(x), wanted.numpy(), atol=1e-5, rtol=0
    )


@pytest.mark.slow
@pytest.mark.parametrize("size", [(48, 48), (64, 40)])
def test_every_layer_and_the_pooler_equal_torch(torch, tiny, size):
    model, folder = tiny
    x = noise(2, *size, 3)
    with torch.no_grad():
        wanted = model(
            torch.tensor(x).permute(0, 3, 1, 2),
            output_hidden_states=True,
            interpolate_pos_encoding=size != (48, 48),
        )
    got = jax.jit(build(folder).__call__)(x)
    assert_states(got, wanted.hidden_states)
    for name in ("last_hidden_state", "pooler_output"):
        np.testing.assert_allclose(got[name], wanted[name].numpy(), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_files_become_the_vectors_of_transformers(torch, tiny, tmp_path):
    from transformers import ViTImageProcessorPil

    model, folder = tiny
    paths = towers.pictures(tmp_path)
    read = ViTImageProcessorPil.from_pretrained(folder)
    with torch.no_grad():
        wanted = model(**read([Image.open(path) for path in paths], return_tensors="pt"))
    tower = vit.load(weights=str(folder), layers=("pooler_output", "last_hidden_state:mean"))
    got = towers.encode(tower, paths)
    wanted_mean = wanted.last_hidden_state.mean(1).numpy()
    np.testing.assert_allclose(
        got["pooler_output"], wanted.pooler_output.numpy(), atol=1e-4, rtol=0
    )
    np.testing.assert_allclose(got["last_hidden_state:mean"], wanted_mean, atol=1e-4, rtol=0)
    half = vit.load(weights=str(folder), dtype="bfloat16")
    near = towers.encode(half, paths)["pooler_output"]
    cosine = (near * got["pooler_output"]).sum(1) / (
        np.linalg.norm(near, axis=1) * np.linalg.norm(got["pooler_output"], axis=1)
    )
    assert (cosine > 0.99).all()
    assert (near != got["pooler_output"]).any()


@pytest.mark.slow
def test_a_classifier_without_pooler_gives_its_class_token(torch, tmp_path):
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    model = ViTForImageClassification(ViTConfig(**TINY))
    folder = save_random(model, tmp_path)
    ViTImageProcessorPil(size={"height": 48, "width": 48}).save_pretrained(folder)
    x = noise(2, 48, 48, 3)
    with torch.no_grad():
        wanted = model.vit(torch.tensor(x).permute(0, 3, 1, 2)).last_hidden_state
    got = jax.jit(build(folder, pooler=False).__call__)(x)
    np.testing.assert_allclose(got["last_hidden_state"], wanted.numpy(), atol=1e-4, rtol=0)
    assert vit.load(weights=str(folder)).layers == {"last_hidden_state:cls": 32}
    wide = vit.load(weights=str(folder), layers=[1], options=ImageOptions(reshape=(64, 40)))
    assert wide.layers == {"hidden_states.1:mean": 32}


def test_what_does_not_fit_is_one_clear_sentence(tiny, tmp_path):
    folder = str(tiny[1])
    with pytest.raises(InputError, match="no layer 'pooler'; did you mean pooler_output"):
        vit.load(weights=folder, layers=["pooler"])
    with pytest.raises(InputError, match="images of 4 x 40 hold no patch"):
        vit.load(weights=folder, options=ImageOptions(reshape=(4, 40)))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "swin"}))
    with pytest.raises(InputError, match="'swin' model, not of vit"):
        vit.load(weights=str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qkv_bias": False}, "without qkv_bias"),
        ({"pooler_act": "relu"}, "another pooler_act"),
        ({"hidden_act": "swoosh"}, "swoosh"),
        ({"image_size": [48, 64]}, "image_size"),
        ({"num_channels": 1}, "1 channels"),
        ({"num_attention_heads": 5}, "5 heads do not divide a width of 32"),
    ],
)
def test_variants_that_would_compute_something_else_are_refused(change, message):
    assert vit.Config.read({**TINY, "patch_size": [8, 8]}).patch_size == 8
    with pytest.raises(InputError, match=message):
        vit.Config.read({**TINY, **change})
