"""AltCLIP against torch: both halves, together and on their own, files and texts to vectors."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from support import towers
from support.towers import assert_states, save_random

from mmjax.core.errors import InputError
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.inputs.text import TextOptions
from mmjax.encoders.towers import altclip, bert, clip
from mmjax.encoders.towers.vit import read_fields

WIDTHS = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
VISION = {**WIDTHS, "hidden_size": 32, "image_size": 48, "patch_size": 8, "projection_dim": 24}
WORDS = ["a", "red", "cat", "sat", "on", "the", "mat", "and", "big", "dogs", "ran", "by"]
TEXT = {
    **WIDTHS,
    "hidden_size": 40,
    "vocab_size": 30,
    "max_position_embeddings": 22,
    "project_dim": 28,
}
TEXTS = ["a red cat on the mat", "dogs", "a cat and the dogs " * 12, ""]


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def tiny(torch, tmp_path_factory):
    """A random AltCLIP of transformers and the folder of it, its tokenizer and image processor."""
    from transformers import AltCLIPConfig, AltCLIPModel

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer(folder)
    processor(folder)
    model = AltCLIPModel(AltCLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=24))
    return model, save_random(model, folder)


def tokenizer(folder):
    from transformers import XLMRobertaTokenizer

    words = [("▁" + word, -1.0) for word in WORDS]
    special = [(name, 0.0) for name in ("<s>", "<pad>", "</s>", "<unk>")]
    made = XLMRobertaTokenizer(vocab=[*special, *words, ("<mask>", 0.0)])
    made.save_pretrained(folder)


def processor(folder):
    from transformers import CLIPImageProcessorPil

    made = CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    made.save_pretrained(folder)
    return made


def texts_by_torch(torch, model, folder):
    tokens = hub.tokenizer(folder)(
        TEXTS, padding=True, truncation=True, max_length=20, return_tensors="pt"
    )
    with torch.no_grad():
        return tokens, model(**tokens, output_hidden_states=True)


def assert_near(got, wanted):
    np.testing.assert_allclose(got, wanted.numpy(), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_every_layer_of_texts_equals_torch(torch, tiny):
    model, folder = tiny
    half = clip.read_half(json.loads((folder / "config.json").read_text()), "text")
    config = bert.Config.read(altclip.TEXT_DEFAULTS | half)
    module = hub.merge(
        *hub.load_module(
            lambda: altclip.Text(config, padding=1, teacher=28, projection=24, rngs=nnx.Rngs(0)),
            folder,
            altclip.key_map("text"),
        )
    )
    tokens, wanted = texts_by_torch(torch, model.text_model, folder)
    ids, mask = tokens["input_ids"].numpy(), tokens["attention_mask"].numpy().astype(bool)
    got = jax.jit(module.__call__)(ids, mask)
    assert_states(got, wanted.hidden_states, mask)
    np.testing.assert_allclose(
        got["last_hidden_state"][mask], wanted.last_hidden_state.numpy()[mask], atol=1e-4, rtol=0
    )
    assert_near(got["pooler_output"], wanted.pooler_output)


@pytest.mark.slow
def test_every_layer_of_images_equals_torch(torch, tiny):
    model, folder = tiny
    half = clip.read_half(json.loads((folder / "config.json").read_text()), "vision")
    config = read_fields(clip.VisionConfig, half)
    module = hub.merge(
        *hub.load_module(
            lambda: clip.Vision(config, rngs=nnx.Rngs(0)), folder, altclip.key_map("image")
        )
    )
    x = np.random.default_rng(0).normal(size=(2, 48, 48, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = model.vision_model(torch.tensor(x).permute(0, 3, 1, 2), output_hidden_states=True)
        embeds = model.visual_projection(wanted.pooler_output)
    got = jax.jit(module.__call__)(x)
    assert_states(got, wanted.hidden_states)
    assert_near(got["image_embeds"], embeds)


@pytest.mark.slow
def test_texts_equal_torch(torch, tiny):
    model, folder = tiny
    _, wanted = texts_by_torch(torch, model.text_model, folder)
    with torch.no_grad():
        embeds = model.text_projection(wanted.pooler_output)
    tower = altclip.load(weights=str(folder), modality="text")
    found = towers.encode(tower, TEXTS, 2)
    assert list(found) == ["text_embeds"]
    assert_near(found["text_embeds"], embeds)
    with pytest.raises(InputError, match="over the model's 20 tokens"):
        altclip.load(weights=str(folder), modality="text", text_options=TextOptions(max_length=21))


@pytest.mark.slow
def test_image_files_equal_torch(torch, tiny, tmp_path):
    from PIL import Image

    model, folder = tiny
    paths = towers.pictures(tmp_path)
    pixels = processor(tmp_path)([Image.open(path) for path in paths], return_tensors="pt")
    with torch.no_grad():
        pooled = model.vision_model(**pixels).pooler_output
        wanted = model.visual_projection(pooled)
    tower = altclip.load(weights=str(folder), layers=["image_embeds", "pooler_output"])
    found = towers.encode(tower, paths)
    assert_near(found["image_embeds"], wanted)
    assert_near(found["pooler_output"], pooled)


@pytest.mark.slow
def test_a_half_on_its_own_has_no_projection(torch, tmp_path):
    from transformers import AltCLIPTextConfig, AltCLIPTextModel

    model = AltCLIPTextModel(AltCLIPTextConfig(**TEXT))
    save_random(model, tmp_path)
    tokenizer(tmp_path)
    _, wanted = texts_by_torch(torch, model, tmp_path)
    found = towers.encode(altclip.load(weights=str(tmp_path), modality="text"), TEXTS)
    assert list(found) == ["pooler_output"]
    assert_near(found["pooler_output"], wanted.pooler_output)


@pytest.mark.slow
def test_layers_have_either_name(tiny, tmp_path):
    _, folder = tiny
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    old, new = (".layer.", ".layers.")
    if "text_model.roberta.encoder.layers.0.output.dense.bias" in weights:
        old, new = new, old
    weights = {name.replace(old, new): value for name, value in weights.items()}
    save_file(weights, tmp_path / "model.safetensors")
    for modality in ("image", "text"):
        one, other = (
            altclip.load(weights=str(path), modality=modality).params for path in (folder, tmp_path)
        )
        jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.slow
def test_bfloat16_stays_near(tiny):
    _, folder = tiny
    full, half = (
        towers.encode(altclip.load(weights=str(folder), modality="text", dtype=dtype), TEXTS)
        for dtype in ("float32", "bfloat16")
    )
    full, half = full["text_embeds"], half["text_embeds"]
    norms = np.linalg.norm(full, axis=1) * np.linalg.norm(half, axis=1)
    assert ((full * half).sum(axis=1) / norms > 0.99).all()


def test_what_config_json_omits_is_what_transformers_takes():
    from transformers import AltCLIPTextConfig

    theirs = AltCLIPTextConfig()
    for name, value in altclip.TEXT_DEFAULTS.items():
        assert getattr(theirs, name) == value


def test_what_is_refused(tmp_path):
    with pytest.raises(InputError, match="'audio' is none of image, text"):
        altclip.load(weights=str(tmp_path), modality="audio")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(InputError, match="'clip' model, not of altclip or altclip_vision_model"):
        altclip.load(weights=str(tmp_path))
