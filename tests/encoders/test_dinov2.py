"""DINOv2 against torch, with registers and gated MLPs, at other sizes than the trained one."""

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
from mmjax.encoders.towers import dinov2

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "mlp_ratio": 2,
    "image_size": 70,  # 10 x 10 patches
    "patch_size": 7,
}
VARIANTS = {
    "plain": ("Dinov2", TINY),
    "giant": ("Dinov2", {**TINY, "use_swiglu_ffn": True}),
    "registers": ("Dinov2WithRegisters", {**TINY, "num_register_tokens": 3}),
}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module", params=VARIANTS)
def tiny(request, torch, tmp_path_factory):
    """A random DINOv2 of transformers and the folder of it and its image processor."""
    import transformers

    name, sizes = VARIANTS[request.param]
    config = getattr(transformers, f"{name}Config")(**sizes)
    model = getattr(transformers, f"{name}Model")(config)
    folder = tmp_path_factory.mktemp(request.param)
    transformers.BitImageProcessorPil(
        size={"shortest_edge": 40},
        crop_size={"height": 35, "width": 35},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)
    return model, save_random(model, folder)


def build(folder):
    config = dinov2.Config.read(json.loads((folder / "config.json").read_text()))
    made = hub.load_module(
        lambda: dinov2.Dinov2(config, rngs=nnx.Rngs(0)), folder, dinov2.key_map()
    )
    return hub.merge(*made)


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(70, 70), (35, 35), (84, 51)])
def test_every_layer_and_the_pooler_equal_torch(torch, tiny, size):
    model, folder = tiny
    x = noise(2, *size, 3)
    with torch.no_grad():
        wanted = model(torch.tensor(x).permute(0, 3, 1, 2), output_hidden_states=True)
    got = jax.jit(build(folder).__call__)(x)
    assert_states(got, wanted.hidden_states)
    for name in ("last_hidden_state", "pooler_output"):
        np.testing.assert_allclose(got[name], wanted[name].numpy(), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_one_block_equals_torch_on_its_own(torch, tiny):
    model, folder = tiny
    x = noise(2, 5, 32)
    with torch.no_grad():
        wanted = model.encoder.layer[1](torch.tensor(x))
    np.testing.assert_allclose(
        jax.jit(build(folder).blocks[1].__call__)(x), wanted.numpy(), atol=1e-5, rtol=0
    )


@pytest.mark.slow
def test_files_become_the_vectors_of_transformers(torch, tiny, tmp_path):
    from transformers import BitImageProcessorPil

    model, folder = tiny
    paths = towers.pictures(tmp_path)
    read = BitImageProcessorPil.from_pretrained(folder)
    with torch.no_grad():
        inputs = read([Image.open(path) for path in paths], return_tensors="pt")
        wanted = model(**inputs).pooler_output.numpy()
    got = towers.encode(dinov2.load(weights=str(folder)), paths)["pooler_output"]
    np.testing.assert_allclose(got, wanted, atol=1e-4, rtol=0)
    if type(model).__name__ != "Dinov2WithRegistersModel":  # one of them tells enough
        return
    half = dinov2.load(weights=str(folder), dtype="bfloat16")
    near = towers.encode(half, paths)["pooler_output"]
    cosine = (near * got).sum(1) / np.linalg.norm(near, axis=1) / np.linalg.norm(got, axis=1)
    assert (cosine > 0.99).all()


@pytest.mark.slow
def test_a_classifiers_names_are_known(torch, tmp_path):
    from transformers import Dinov2Config, Dinov2ForImageClassification

    model = Dinov2ForImageClassification(Dinov2Config(**TINY))
    folder = save_random(model, tmp_path)
    x = noise(1, 70, 70, 3)
    with torch.no_grad():
        wanted = model.dinov2(torch.tensor(x).permute(0, 3, 1, 2)).pooler_output
    got = jax.jit(build(folder).__call__)(x)
    np.testing.assert_allclose(got["pooler_output"], wanted.numpy(), atol=1e-4, rtol=0)


def test_what_does_not_fit_is_one_clear_sentence(tmp_path):
    with pytest.raises(InputError, match="without qkv_bias"):
        dinov2.Config.read({**TINY, "qkv_bias": False})
    assert dinov2.Config.read({"model_type": "dinov2_with_registers"}).num_register_tokens == 4
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov3_vit"}))
    with pytest.raises(InputError, match="'dinov3_vit' model, not of dinov2 or dinov2_with_reg"):
        dinov2.load(weights=str(tmp_path))
