"""SigLIP against torch: both halves, together and on their own, files and texts to vectors."""

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
from mmjax.encoders.inputs.text import TextOptions
from mmjax.encoders.towers import clip, siglip
from mmjax.encoders.towers.vit import read_fields

WIDTHS = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "hidden_size": 32,
}
VISION = {**WIDTHS, "image_size": 50, "patch_size": 8}  # 6 x 6 patches and 2 pixels too many
WORDS = ["a", "red", "blue", "car", "cat", "dog", "on", "the", "mat", "and"]
TEXT = {
    **WIDTHS,
    "vocab_size": 3 + len(WORDS),
    "max_position_embeddings": 16,
    "projection_size": 24,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
TEXTS = ["a red cat on the mat", "dog", "a blue car and a red car and the dog on the mat " * 3, ""]


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def tiny(torch, tmp_path_factory):
    """A random SigLIP of transformers and the folder of it, its tokenizer and image processor."""
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer(folder)
    SiglipImageProcessorPil(size={"height": 50, "width": 50}).save_pretrained(folder)
    model = SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION))
    return model, save_random(model, folder)


def tokenizer(folder):
    """Words and the end of a text, with which SigLIP pads too."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "</s>", "<free>", *WORDS]
    rules = Tokenizer(models.WordLevel(dict(zip(names, range(99))), unk_token="<unk>"))  # noqa: B905
    rules.pre_tokenizer = pre_tokenizers.Whitespace()
    rules.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokens = PreTrainedTokenizerFast(
        tokenizer_object=rules,
        pad_token="</s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=16,
    )
    tokens.save_pretrained(folder)
    return tokens


def build(folder, modality):
    config = json.loads((folder / "config.json").read_text())
    if modality == "image":
        kind = siglip.Vision
        shape = read_fields(siglip.VisionConfig, clip.read_half(config, "vision"))
    else:
        kind, shape = siglip.Text, read_fields(siglip.TextConfig, clip.read_half(config, "text"))
    made = hub.load_module(lambda: kind(shape, rngs=nnx.Rngs(0)), folder, siglip.key_map(modality))
    return hub.merge(*made)


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def assert_near(got, wanted, atol=1e-4):
    np.testing.assert_allclose(got, wanted.numpy(), atol=atol, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(50, 50), (64, 40)])
def test_every_layer_of_images_equals_torch(torch, tiny, size):
    model, folder = tiny
    x = noise(2, *size, 3)
    with torch.no_grad():
        wanted = model.vision_model(
            torch.tensor(x).permute(0, 3, 1, 2),
            output_hidden_states=True,
            interpolate_pos_encoding=size != (50, 50),
        )
    got = jax.jit(build(folder, "image").__call__)(x)
    assert_states(got, wanted.hidden_states)
    assert_near(got["last_hidden_state"], wanted.last_hidden_state)
    assert_near(got["pooler_output"], wanted.pooler_output)
    np.testing.assert_array_equal(got["image_embeds"], got["pooler_output"])


@pytest.mark.slow
def test_every_layer_of_texts_equals_torch(torch, tiny):
    model, folder = tiny
    ids = np.random.default_rng(0).integers(1, 13, (3, 16))
    with torch.no_grad():
        wanted = model.text_model(input_ids=torch.tensor(ids), output_hidden_states=True)
    got = jax.jit(build(folder, "text").__call__)(ids)
    assert_states(got, wanted.hidden_states)
    assert_near(got["last_hidden_state"], wanted.last_hidden_state)
    assert_near(got["pooler_output"], wanted.pooler_output)
    np.testing.assert_array_equal(got["text_embeds"], got["pooler_output"])


@pytest.mark.slow
def test_one_block_and_the_pooler_equal_torch_on_their_own(torch, tiny):
    model, folder = tiny
    module = build(folder, "image").trunk
    x = noise(2, 5, 32)
    with torch.no_grad():
        block = model.vision_model.encoder.layers[1](torch.tensor(x), None)
        pooled = model.vision_model.head(torch.tensor(x))
    assert_near(jax.jit(module.blocks[1].__call__)(x), block, atol=1e-5)
    assert_near(jax.jit(module.pooler.__call__)(x), pooled, atol=1e-5)


@pytest.mark.slow
def test_files_become_get_image_features(torch, tiny, tmp_path):
    from transformers import SiglipImageProcessorPil

    model, folder = tiny
    paths = towers.pictures(tmp_path)
    read = SiglipImageProcessorPil.from_pretrained(folder)
    with torch.no_grad():
        inputs = read([Image.open(path) for path in paths], return_tensors="pt")
        wanted = model.get_image_features(**inputs).pooler_output
    got = towers.encode(siglip.load(weights=str(folder)), paths)["image_embeds"]
    assert_near(got, wanted)
    half = siglip.load(weights=str(folder), dtype="bfloat16")
    near = towers.encode(half, paths)["image_embeds"]
    cosine = (near * got).sum(1) / np.linalg.norm(near, axis=1) / np.linalg.norm(got, axis=1)
    assert (cosine > 0.99).all()


@pytest.mark.slow
def test_texts_become_get_text_features(torch, tiny, tmp_path):
    model, folder = tiny
    tokens = tokenizer(tmp_path)
    with torch.no_grad():
        ids = tokens(
            TEXTS, padding="max_length", truncation=True, max_length=16, return_tensors="pt"
        )["input_ids"]
        wanted = model.get_text_features(input_ids=ids).pooler_output
    tower = siglip.load(weights=str(folder), modality="text")
    assert tower.layers == {"text_embeds": 24}
    (batch,) = tower.batches(["A Red CAT"], 2)
    assert batch.arrays[0].tolist() == [[3, 4, 7, *[1] * 13], [0] * 16]
    got = towers.encode(tower, TEXTS)["text_embeds"]
    assert_near(got, wanted)
    half = siglip.load(weights=str(folder), modality="text", dtype="bfloat16")
    near = towers.encode(half, TEXTS)["text_embeds"]
    cosine = (near * got).sum(1) / np.linalg.norm(near, axis=1) / np.linalg.norm(got, axis=1)
    assert (cosine > 0.99).all()


def test_texts_are_spelt_as_the_first_siglip_spells_them(tiny, tmp_path):
    """Its class wants sentencepiece; tokenizer.json needs only what the class does before."""
    _, folder = tiny
    tokenizer(tmp_path)
    about = json.loads((tmp_path / "tokenizer_config.json").read_text())
    about["tokenizer_class"] = "SiglipTokenizer"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(about))
    options = TextOptions(tokenizer=str(tmp_path))
    tower = siglip.load(weights=str(folder), modality="text", text_options=options)
    (batch,) = tower.batches(["The  c.a.t,\n on the 'mat'!"], 1)
    assert batch.arrays[0][0, :7].tolist() == [10, 7, 9, 10, 11, 1, 1]
    options = TextOptions(tokenizer=str(tmp_path), clean=True)
    tower = siglip.load(weights=str(folder), modality="text", text_options=options)
    (batch,) = tower.batches(["the cat & a dog"], 1)
    assert batch.arrays[0][0, :6].tolist() == [10, 7, 3, 8, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Vision", "Text"])
def test_halves_on_their_own(torch, tmp_path, name):
    import transformers

    change = {**VISION, "vision_use_head": False} if name == "Vision" else TEXT
    config = getattr(transformers, f"Siglip{name}Config")(**change)
    model = getattr(transformers, f"Siglip{name}Model")(config)
    folder = save_random(model, tmp_path)
    with torch.no_grad():
        if name == "Vision":
            x = noise(2, 50, 50, 3)
            wanted = model(torch.tensor(x).permute(0, 3, 1, 2)).last_hidden_state
            got = jax.jit(build(folder, "image").__call__)(x)
            assert "image_embeds" not in got
            assert_near(got["last_hidden_state"], wanted)
        else:
            x = np.random.default_rng(0).integers(1, 13, (2, 16))
            wanted = model(torch.tensor(x)).pooler_output
            got = jax.jit(build(folder, "text").__call__)(x)
            assert_near(got["text_embeds"], wanted)


def test_what_a_configuration_omits_is_as_transformers_has_it():
    from transformers import SiglipConfig

    theirs = SiglipConfig.from_dict({"model_type": "siglip"})
    for half, kind in (("text", siglip.TextConfig), ("vision", siglip.VisionConfig)):
        ours = vars(read_fields(kind, clip.read_half({"model_type": "siglip"}, half)))
        wanted = getattr(theirs, f"{half}_config").to_dict()
        ours = {name: value for name, value in ours.items() if value is not None}
        assert ours == {name: wanted[name] for name in ours}


def test_what_does_not_fit_is_one_clear_sentence(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    with pytest.raises(InputError, match="'siglip2' model, not of siglip or siglip_vision_model"):
        siglip.load(weights=str(tmp_path))
    with pytest.raises(InputError, match="modality 'both' is none of image, text"):
        siglip.load(weights=str(tmp_path), modality="both")
