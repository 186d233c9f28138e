"""CLIP against torch: both halves, together and on their own, files and texts to vectors."""

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
from mmjax.encoders.inputs.text import TextOptions
from mmjax.encoders.towers import clip
from mmjax.encoders.towers.vit import read_fields

WIDTHS = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
VISION = {**WIDTHS, "hidden_size": 32, "image_size": 48, "patch_size": 8, "projection_dim": 24}
WORDS = ["a", "red", "blue", "car", "cat", "dog", "on", "the", "mat", "and"]
END = 3  # words have larger ids
TEXT = {
    **WIDTHS,
    "hidden_size": 40,
    "vocab_size": 4 + len(WORDS) + 1,
    "max_position_embeddings": 20,
    "bos_token_id": 2,
    "eos_token_id": END,
    "projection_dim": 24,
}
TEXTS = ["a red cat on the mat", "dog", "a blue car and a red car and the dog on the mat " * 3, ""]


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def tiny(torch, tmp_path_factory):
    """A random CLIP of transformers and the folder of it, its tokenizer and image processor."""
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=24)
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer(folder)
    processor(folder)
    model = CLIPModel(config)
    return model, save_random(model, folder)


def tokenizer(folder, end=END):
    """Words and where a text begins and ends; as CLIP's, it pads with the end."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<unk>", "<start>"]
    names = [*names, "<end>", *WORDS] if end == END else [*names, "<free>", *WORDS, "<end>"]
    rules = Tokenizer(models.WordLevel(dict(zip(names, range(99))), unk_token="<unk>"))  # noqa: B905
    rules.pre_tokenizer = pre_tokenizers.Whitespace()
    rules.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", end)]
    )
    tokens = PreTrainedTokenizerFast(
        tokenizer_object=rules,
        pad_token="<end>",
        eos_token="<end>",
        bos_token="<start>",
        unk_token="<unk>",
        model_max_length=20,
    )
    tokens.save_pretrained(folder)
    return tokens


def processor(folder):
    from transformers import CLIPImageProcessorPil

    made = CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    made.save_pretrained(folder)
    return made


def build(folder, modality, *, projection=True):
    config = json.loads((folder / "config.json").read_text())
    if modality == "image":
        kind, shape = clip.Vision, read_fields(clip.VisionConfig, clip.read_half(config, "vision"))
    else:
        kind, shape = clip.Text, read_fields(clip.TextConfig, clip.read_half(config, "text"))
    made = hub.load_module(
        lambda: kind(shape, projection=projection, rngs=nnx.Rngs(0)),
        folder,
        clip.key_map(modality),
    )
    return hub.merge(*made)


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def assert_near(got, wanted, atol=1e-4):
    np.testing.assert_allclose(got, wanted.numpy(), atol=atol, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(48, 48), (64, 40)])
def test_every_layer_of_images_equals_torch(torch, tiny, size):
    model, folder = tiny
    x = noise(2, *size, 3)
    with torch.no_grad():
        wanted = model.vision_model(
            torch.tensor(x).permute(0, 3, 1, 2),
            output_hidden_states=True,
            interpolate_pos_encoding=size != (48, 48),
        )
        embeds = model.visual_projection(wanted.pooler_output)
    got = jax.jit(build(folder, "image").__call__)(x)
    assert_states(got, wanted.hidden_states)
    assert_near(got["last_hidden_state"], wanted.last_hidden_state)
    assert_near(got["pooler_output"], wanted.pooler_output)
    assert_near(got["image_embeds"], embeds)


@pytest.mark.slow
@pytest.mark.parametrize("end", [END, 2])
def test_every_layer_of_texts_equals_torch(torch, tiny, end):
    model, folder = tiny
    module = build(folder, "text")
    ids = np.random.default_rng(0).integers(4, 14, (3, 17))
    ids[[0, 1, 2], [16, 8, 1]] = 14 if end == 2 else end
    ids[1, 12] = ids[1, 8]  # padding with the end of text: the first one counts
    mask = np.arange(17) < np.array([[17], [9], [2]])
    module.end, model.text_model.eos_token_id = end, end
    with torch.no_grad():
        wanted = model.text_model(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask.astype(np.int64)),
            output_hidden_states=True,
        )
        embeds = model.text_projection(wanted.pooler_output)
    model.text_model.eos_token_id = END
    got = jax.jit(module.__call__)(ids, mask)
    assert_states(got, wanted.hidden_states, mask)
    assert_near(got["last_hidden_state"][mask], wanted.last_hidden_state[mask])
    assert_near(got["pooler_output"], wanted.pooler_output)
    assert_near(got["text_embeds"], embeds)


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["image", "text"])
def test_one_block_equals_torch_on_its_own(torch, tiny, modality):
    model, folder = tiny
    half = model.vision_model if modality == "image" else model.text_model
    x = noise(2, 5, 32 if modality == "image" else 40)
    with torch.no_grad():
        wanted = half.encoder.layers[1](torch.tensor(x), None)
    assert_near(jax.jit(build(folder, modality).blocks[1].__call__)(x), wanted, atol=1e-5)


@pytest.mark.slow
def test_files_become_get_image_features(torch, tiny, tmp_path):
    model, folder = tiny
    paths = towers.pictures(tmp_path)
    with torch.no_grad():
        inputs = processor(tmp_path)([Image.open(path) for path in paths], return_tensors="pt")
        wanted = model.get_image_features(**inputs).pooler_output
    got = towers.encode(clip.load(weights=str(folder)), paths)["image_embeds"]
    assert_near(got, wanted)
    half = clip.load(weights=str(folder), dtype="bfloat16")
    near = towers.encode(half, paths)["image_embeds"]
    cosine = (near * got).sum(1) / np.linalg.norm(near, axis=1) / np.linalg.norm(got, axis=1)
    assert (cosine > 0.99).all()


@pytest.mark.slow
@pytest.mark.parametrize("end", [END, 2])
def test_texts_become_get_text_features(torch, tmp_path, end):
    from transformers import CLIPConfig, CLIPModel

    tokens = tokenizer(tmp_path, END if end == END else len(WORDS) + 4)
    config = CLIPConfig(text_config={**TEXT, "eos_token_id": end}, vision_config=VISION)
    model = CLIPModel(config)
    folder = str(save_random(model, tmp_path))
    with torch.no_grad():
        inputs = tokens(TEXTS, padding=True, truncation=True, max_length=20, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        wanted = model.get_text_features(**inputs).pooler_output
    got = towers.encode(clip.load(weights=folder, modality="text"), TEXTS)["text_embeds"]
    assert_near(got, wanted)
    if end == 2:
        padded = TextOptions(padding="max_length")
        tower = clip.load(weights=folder, modality="text", text_options=padded)
        assert_near(towers.encode(tower, TEXTS)["text_embeds"], wanted)
        return
    half = clip.load(weights=folder, modality="text", dtype="bfloat16")
    near = towers.encode(half, TEXTS)["text_embeds"]
    cosine = (near * got).sum(1) / np.linalg.norm(near, axis=1) / np.linalg.norm(got, axis=1)
    assert (cosine > 0.99).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Vision", "Text"])
@pytest.mark.parametrize("projection", [False, True])
def test_halves_on_their_own(torch, tmp_path, name, projection):
    import transformers

    kind = f"CLIP{name}Model" + ("WithProjection" if projection else "")
    config = getattr(transformers, f"CLIP{name}Config")(**(VISION if name == "Vision" else TEXT))
    model = getattr(transformers, kind)(config)
    folder = save_random(model, tmp_path)
    modality = "image" if name == "Vision" else "text"
    x = noise(2, 48, 48, 3) if name == "Vision" else np.array([[2, 5, 6, END], [2, 9, END, END]])
    module = build(folder, modality, projection=projection)
    with torch.no_grad():
        if name == "Vision":
            wanted = model(torch.tensor(x).permute(0, 3, 1, 2))
            got = jax.jit(module.__call__)(x)
        else:
            wanted = model(torch.tensor(x))
            got = jax.jit(module.__call__)(x, np.ones(x.shape, bool))
    layer = f"{modality}_embeds" if projection else "pooler_output"
    assert_near(got[layer], wanted[layer])
    (processor if name == "Vision" else tokenizer)(folder)
    tower = clip.load(weights=str(folder), modality=modality)
    assert tower.layers == {layer: 24 if projection else model.config.hidden_size}


def test_old_configurations_are_read_as_transformers_reads_them():
    from transformers import CLIPConfig

    config = {
        "model_type": "clip",
        "projection_dim": 24,
        "text_config": {"hidden_size": 8, "hidden_act": "gelu", "eos_token_id": 2},
        "text_config_dict": {"hidden_size": 40, "num_attention_heads": 4},
        "vision_config": {"hidden_size": 32, "num_attention_heads": 4, "hidden_act": "gelu"},
    }
    theirs = CLIPConfig.from_dict(config)
    for half, kind in (("text", clip.TextConfig), ("vision", clip.VisionConfig)):
        ours = read_fields(kind, clip.read_half(config, half))
        wanted = getattr(theirs, f"{half}_config").to_dict() | {"projection_dim": 24}
        assert {name: wanted[name] for name in ours.__dataclass_fields__} == vars(ours)


def test_what_does_not_fit_is_one_clear_sentence(tiny, tmp_path):
    folder = str(tiny[1])
    with pytest.raises(InputError, match="modality 'audio' is none of image, text"):
        clip.load(weights=folder, modality="audio")
    with pytest.raises(InputError, match="no layer 'text_embeds'; did you mean image_embeds"):
        clip.load(weights=folder, layers=["text_embeds"])
    with pytest.raises(InputError, match="images of 5 x 48 hold no patch of 8 x 8"):
        clip.load(weights=folder, image=ImageOptions(reshape=(5, 48)))
    with pytest.raises(InputError, match=r"eos_token_id \[2, 3\]"):
        read_fields(clip.TextConfig, {"eos_token_id": [2, 3]})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip_vision_model"}))
    with pytest.raises(InputError, match="'clip_vision_model' model, not of clip or clip_text"):
        clip.load(weights=str(tmp_path), modality="text")
