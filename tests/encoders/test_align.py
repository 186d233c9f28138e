"""ALIGN against torch: both halves, together and on their own, files and texts to vectors."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from support import towers

from mmjax.core.errors import InputError
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.inputs.text import TextOptions
from mmjax.encoders.towers import align, bert, efficientnet

VISION = {
    "width_coefficient": 0.5,
    "depth_coefficient": 1.1,
    "in_channels": [32, 16, 40],
    "out_channels": [16, 40, 80],
    "kernel_sizes": [3, 5, 3],
    "strides": [1, 2, 2],
    "expand_ratios": [1, 6, 6],
    "num_block_repeats": [1, 1, 1],
    "depthwise_padding": [4],
    "hidden_dim": 40,
}
NAMES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "car", "cat", "on"]
TEXT = {
    "vocab_size": len(NAMES),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 20,
}
TEXTS = ["a red cat on a car", "blue", "a red car on a blue cat " * 4, ""]


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def tiny(torch, tmp_path_factory):
    """A random ALIGN of transformers and the folder of it, its tokenizer and image processor."""
    from transformers import AlignConfig, AlignModel

    folder = tmp_path_factory.mktemp("tiny")
    accompany(folder)
    model = AlignModel(AlignConfig(text_config=TEXT, vision_config=VISION, projection_dim=40))
    towers.condition(model)
    return model, towers.save_random(model, folder)


def accompany(folder):
    """A tokenizer, and an image processor with the published checkpoint's peculiarities."""
    from transformers import BertTokenizer, EfficientNetImageProcessorPil

    words = BertTokenizer(vocab={name: n for n, name in enumerate(NAMES)})
    words.save_pretrained(folder)
    pixels = EfficientNetImageProcessorPil(
        size={"height": 52, "width": 52},
        crop_size={"height": 43, "width": 43},
        do_center_crop=True,
        rescale_factor=1 / 127.5,
        rescale_offset=True,
        do_normalize=False,
        include_top=False,
        resample=2,
    )
    pixels.save_pretrained(folder)
    return words, pixels


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def to_torch(torch, maps):
    return torch.tensor(maps).permute(0, 3, 1, 2)


def assert_near(got, wanted, atol=1e-4):
    np.testing.assert_allclose(got, wanted.numpy(), atol=atol, rtol=0)


@pytest.mark.slow
def test_every_layer_of_images_equals_torch(torch, tiny):
    model, folder = tiny
    x = noise(2, 43, 43, 3)
    with torch.no_grad():
        wanted = model.vision_model(to_torch(torch, x), output_hidden_states=True)
    half = json.loads((folder / "config.json").read_text())["vision_config"]
    config = efficientnet.Config.read(half, top=False)
    graph, params = hub.load_module(
        lambda: efficientnet.EfficientNet(config, rngs=nnx.Rngs(0)), folder, align.key_map("image")
    )
    run = jax.jit(lambda params, x: align.embed_image(hub.merge(graph, params), x))
    got = run(params, x)
    towers.assert_states(got, [state.permute(0, 2, 3, 1) for state in wanted.hidden_states])
    assert 0.1 < wanted.pooler_output.abs().max() < 10
    assert_near(got["pooler_output"], wanted.pooler_output, atol=1e-5)
    np.testing.assert_array_equal(got["image_embeds"], got["pooler_output"])


@pytest.mark.slow
def test_every_layer_of_texts_equals_torch(torch, tiny):
    model, folder = tiny
    ids = np.random.default_rng(0).integers(0, len(NAMES), (3, 17))
    mask = np.arange(17) < np.array([[17], [9], [2]])
    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask.astype(int))}
    with torch.no_grad():
        wanted = model.text_model(**inputs, output_hidden_states=True)
        embeds = model.get_text_features(**inputs).pooler_output
    config = bert.Config.read(align.TEXT_DEFAULTS | TEXT)
    graph, params = hub.load_module(
        lambda: align.Text(config, pooler=True, projection=40, rngs=nnx.Rngs(0)),
        folder,
        align.key_map("text"),
    )
    got = jax.jit(lambda params, *x: hub.merge(graph, params)(*x))(params, ids, mask)
    towers.assert_states(got, wanted.hidden_states, mask)
    assert_near(got["pooler_output"], wanted.pooler_output)
    assert_near(got["text_embeds"], embeds)


@pytest.mark.slow
def test_files_and_texts_become_the_vectors_of_transformers(torch, tiny, tmp_path):
    model, folder = tiny
    words, pixels = accompany(tmp_path)
    paths = towers.pictures(tmp_path)
    read = pixels([Image.open(path) for path in paths], return_tensors="pt")
    tokens = words(TEXTS, padding=True, truncation=True, max_length=20, return_tensors="pt")
    with torch.no_grad():
        both = model(**tokens, **read)
        embeds = {
            "image": model.get_image_features(**read).pooler_output,
            "text": model.get_text_features(**tokens).pooler_output,
        }
    unit = {}
    for modality, inputs in (("image", paths), ("text", TEXTS)):
        tower = align.load(weights=str(folder), modality=modality)
        assert tower.modality == modality
        got = towers.encode(tower, inputs)[f"{modality}_embeds"]
        assert_near(got, embeds[modality])
        unit[modality] = got / np.linalg.norm(got, axis=1, keepdims=True)
    half = align.load(weights=str(folder), dtype="bfloat16")
    near = towers.encode(half, paths)["image_embeds"]
    assert ((near * unit["image"]).sum(1) > 0.99 * np.linalg.norm(near, axis=1)).all()
    assert_near(unit["image"], both.image_embeds)
    assert_near(unit["text"], both.text_embeds)


def test_halves_on_their_own(torch, tiny, tmp_path):
    from transformers import AlignTextConfig, AlignTextModel, AlignVisionConfig, AlignVisionModel

    accompany(tmp_path)
    for modality, model in (
        ("image", AlignVisionModel(AlignVisionConfig(**VISION))),
        ("text", AlignTextModel(AlignTextConfig(**TEXT), add_pooling_layer=False)),
    ):
        towers.save_random(model, tmp_path)
        tower = align.load(weights=str(tmp_path), modality=modality)
        assert list(tower.layers) == [
            "image_embeds" if modality == "image" else "sentence_embedding"
        ]
        other = "text" if modality == "image" else "image"
        with pytest.raises(
            InputError, match=f"align_{'vision' if other == 'text' else 'text'}_mod"
        ):
            align.load(weights=str(tmp_path), modality=other)


def test_what_cannot_be_is_refused(tiny):
    folder = str(tiny[1])
    with pytest.raises(InputError, match="modality 'video' is none of image, text"):
        align.load(weights=folder, modality="video")
    with pytest.raises(InputError, match="max_length 21 is over the model's 20 tokens"):
        align.load(weights=folder, modality="text", text_options=TextOptions(max_length=21))
    with pytest.raises(InputError, match="no layer 'text_embeds'; did you mean image_embeds"):
        align.load(weights=folder, layers=["text_embeds"])
