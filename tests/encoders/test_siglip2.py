"""SigLIP 2 NaFlex against torch: grids, positions of each grid, files of many shapes to vectors."""

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
from mmjax.encoders.towers import clip, siglip2
from mmjax.encoders.towers.vit import read_fields

WIDTHS = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "hidden_size": 32,
}
VISION = {**WIDTHS, "num_patches": 25, "patch_size": 8}
TEXT = {**WIDTHS, "vocab_size": 13, "max_position_embeddings": 16, "bos_token_id": 1}
MOST = 36


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def tiny(torch, tmp_path_factory):
    """A random NaFlex SigLIP 2 of transformers and the folder of it and its image processor."""
    from transformers import Siglip2Config, Siglip2ImageProcessorPil, Siglip2Model

    folder = tmp_path_factory.mktemp("tiny")
    Siglip2ImageProcessorPil(patch_size=8, max_num_patches=MOST).save_pretrained(folder)
    text = {**TEXT, "eos_token_id": 1}
    model = Siglip2Model(Siglip2Config(text_config=text, vision_config=VISION))
    return model, save_random(model, folder)


def build(folder):
    half = clip.read_half(json.loads((folder / "config.json").read_text()), "vision")
    config = read_fields(siglip2.VisionConfig, half)
    made = hub.load_module(
        lambda: siglip2.Vision(config, rngs=nnx.Rngs(0)), folder, siglip2.key_map()
    )
    return hub.merge(*made)


@pytest.mark.slow
def test_every_layer_equals_torch_for_every_grid(torch, tiny):
    model, folder = tiny
    # Not of one column and many rows: there torch 2.13 repeats the first row on a CPU.
    grid = np.array([[5, 5], [2, 13], [6, 6], [18, 2], [1, 1], [1, 36], [9, 4]])
    patches = np.random.default_rng(0).normal(size=(len(grid), MOST, 8 * 8 * 3)).astype(np.float32)
    mask = np.arange(MOST) < grid.prod(axis=1)[:, None]
    with torch.no_grad():
        wanted = model.vision_model(
            torch.tensor(patches),
            pixel_attention_mask=torch.tensor(mask.astype(np.int64)),
            spatial_shapes=torch.tensor(grid),
            output_hidden_states=True,
        )
    got, ours = jax.jit(build(folder).__call__)(patches, grid)
    np.testing.assert_array_equal(ours, mask)
    assert_states(got, wanted.hidden_states, mask)
    last = wanted.last_hidden_state.numpy()[mask]
    np.testing.assert_allclose(got["last_hidden_state"][mask], last, atol=1e-4, rtol=0)
    pooled = wanted.pooler_output.numpy()
    np.testing.assert_allclose(got["pooler_output"], pooled, atol=1e-4, rtol=0)


def test_grids_are_those_of_transformers(tiny):
    from transformers.models.siglip2.image_processing_pil_siglip2 import (
        get_image_size_for_max_num_patches,
    )

    flexible = siglip2.Flexible.read(tiny[1], ImageOptions(), 8)
    for height, width in np.random.default_rng(0).integers(1, 3000, (200, 2)):
        theirs = get_image_size_for_max_num_patches(height, width, 8, MOST)
        rows, columns = flexible.grid(height, width)
        assert (rows * 8, columns * 8) == theirs
        assert rows * columns <= MOST


@pytest.mark.slow
def test_files_become_get_image_features(torch, tiny, tmp_path):
    from transformers import Siglip2ImageProcessorPil

    model, folder = tiny
    paths = towers.pictures(tmp_path, sizes=((61, 44), (40, 190), (48, 48), (300, 8)))
    read = Siglip2ImageProcessorPil.from_pretrained(folder)
    with torch.no_grad():
        inputs = read([Image.open(path) for path in paths], return_tensors="pt")
        wanted = model.get_image_features(**inputs)
    mask = inputs["pixel_attention_mask"].numpy()[..., None]
    means = (wanted.last_hidden_state.numpy() * mask).sum(1) / mask.sum(1)
    tower = siglip2.load(weights=str(folder), layers=["image_embeds", "last_hidden_state"])
    paths.insert(1, str(tmp_path / "missing.png"))
    got = towers.encode(tower, paths, size=3)
    assert not got["image_embeds"][1].any()
    got = {name: np.delete(values, 1, axis=0) for name, values in got.items()}
    pooled = wanted.pooler_output.numpy()
    np.testing.assert_allclose(got["image_embeds"], pooled, atol=1e-4, rtol=0)
    np.testing.assert_allclose(got["last_hidden_state:mean"], means, atol=1e-4, rtol=0)
    half = siglip2.load(weights=str(folder), dtype="bfloat16")
    near = towers.encode(half, np.delete(paths, 1).tolist())["image_embeds"]
    cosine = (near * pooled).sum(1) / np.linalg.norm(near, axis=1) / np.linalg.norm(pooled, axis=1)
    assert (cosine > 0.99).all()


@pytest.mark.slow
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_text_half_is_siglips(torch, tiny, side):
    from transformers import Siglip2Tokenizer

    model, folder = tiny
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", "c", "a", "t", "n", "p", "s", "ca"]
    vocabulary = {name: n for n, name in enumerate(names)}
    tokens = Siglip2Tokenizer(vocabulary, [("c", "a")], padding_side=side)
    tokens.save_pretrained(folder)
    texts = ["cat naps", "a", "cats nap " * 5]
    with torch.no_grad():
        ids = tokens(
            texts, padding="max_length", truncation=True, max_length=16, return_tensors="pt"
        )["input_ids"]
        wanted = model.get_text_features(input_ids=ids).pooler_output.numpy()
    tower = siglip2.load(weights=str(folder), modality="text")
    got = towers.encode(tower, [text.upper() for text in texts])["text_embeds"]
    np.testing.assert_allclose(got, wanted, atol=1e-4, rtol=0)


def test_what_does_not_fit_is_one_clear_sentence(tiny, tmp_path):
    folder = str(tiny[1])
    with pytest.raises(InputError, match="no --reshape, no minmax"):
        siglip2.load(weights=folder, image=ImageOptions(reshape=(48, 48)))
    with pytest.raises(InputError, match="no --reshape, no minmax"):
        siglip2.load(weights=folder, image=ImageOptions(preprocessing="minmax"))
    with pytest.raises(InputError, match="patches of 8, the model of 16"):
        siglip2.Flexible.read(tiny[1], ImageOptions(), 16)
    as_is = {"image_processor_type": "Siglip2ImageProcessor", "do_resize": False}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(as_is))
    with pytest.raises(InputError, match=r"preprocessor_config\.json does not resize"):
        siglip2.Flexible.read(tmp_path, ImageOptions(), 8)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    with pytest.raises(InputError, match="'siglip' model, not of siglip2 or siglip2_vision_model"):
        siglip2.load(weights=str(tmp_path))
