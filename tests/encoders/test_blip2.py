"""BLIP-2's first stage against torch: ViT, Q-Former, images, texts and pairs to vectors."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from support import towers
from support.towers import assert_states, save_random

from mmjax.core.errors import InputError
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.towers import blip2, vit
from mmjax.encoders.towers.qformer import Config

WIDTHS = {"num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
VISION = {**WIDTHS, "hidden_size": 40, "image_size": 48, "patch_size": 12}
WORDS = ["a", "red", "cat", "sat", "on", "the", "mat", "and", "big", "dogs", "ran", "by"]
QFORMER = {
    **WIDTHS,
    "hidden_size": 32,
    "vocab_size": 30,
    "max_position_embeddings": 24,
    "use_qformer_text_input": True,
}
QUERIES = 16  # as many as the shortest bucket of texts has places
TEXTS = ["a red cat on the mat", "", "a cat and the dogs " * 12]


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def tiny(torch, tmp_path_factory):
    """A random BLIP-2 of transformers and the folder of it, its tokenizer and image processor."""
    from transformers import BertTokenizer, Blip2Config, Blip2ForImageTextRetrieval

    folder = tmp_path_factory.mktemp("tiny")
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    BertTokenizer(vocab={name: n for n, name in enumerate(names)}).save_pretrained(folder)
    processor().save_pretrained(folder)
    config = Blip2Config(
        vision_config=VISION,
        qformer_config=QFORMER,
        num_query_tokens=QUERIES,
        image_text_hidden_size=24,
    )
    model = Blip2ForImageTextRetrieval(config)
    return model, save_random(model, folder)


def processor():
    from transformers import BlipImageProcessorPil

    return BlipImageProcessorPil(size={"height": 48, "width": 48})


def build(folder, modality):
    given = json.loads((folder / "config.json").read_text())
    vision = blip2.VisionConfig.read(given["vision_config"])
    config = vit.read_fields(Config, {**given, **given["qformer_config"]})
    graph, params = hub.load_module(
        lambda: blip2.Blip2(config, vision, modality, rngs=nnx.Rngs(0)),
        folder,
        blip2.key_map(modality),
    )
    return hub.merge(graph, params)


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def assert_near(got, wanted):
    np.testing.assert_allclose(got, wanted.numpy(), atol=1e-4, rtol=0)


def tokens_of(folder):
    return hub.tokenizer(folder)(
        TEXTS, padding=True, truncation=True, max_length=24, return_tensors="pt"
    )


def pixels_of(paths):
    from PIL import Image

    return processor()([Image.open(path) for path in paths], return_tensors="pt")["pixel_values"]


@pytest.mark.slow
@pytest.mark.parametrize("size", [(48, 48), (60, 36)])
def test_every_layer_of_images_equals_torch(torch, tiny, size):
    model, folder = tiny
    x = noise(2, *size, 3)
    with torch.no_grad():
        wanted = model.vision_model(
            torch.tensor(x).permute(0, 3, 1, 2),
            output_hidden_states=True,
            interpolate_pos_encoding=size != (48, 48),
        )
        asked = model.qformer(
            query_embeds=model.query_tokens.expand(2, -1, -1),
            encoder_hidden_states=wanted.last_hidden_state,
            output_hidden_states=True,
        )
        embeds = model.vision_projection(asked.last_hidden_state)
        embeds = torch.nn.functional.normalize(embeds, dim=-1)
    module = build(folder, "image")
    got = jax.jit(lambda pixels: blip2.embed_images(module, pixels))(x)
    assert_states(got, wanted.hidden_states)
    assert_near(got["last_hidden_state"], wanted.last_hidden_state)
    assert_near(got["pooler_output"], wanted.pooler_output)
    states = {name.removeprefix("qformer_"): got[name] for name in got if "qformer_hid" in name}
    assert_states(states, asked.hidden_states)
    np.testing.assert_array_equal(got["qformer_states"], states["hidden_states.3"])
    assert_near(got["image_embeds"], embeds)


@pytest.mark.slow
def test_every_layer_of_texts_equals_torch(torch, tiny):
    model, folder = tiny
    tokens = tokens_of(folder)
    with torch.no_grad():
        wanted = model.qformer(
            query_embeds=model.embeddings(tokens["input_ids"]),
            query_length=0,
            attention_mask=tokens["attention_mask"],
            output_hidden_states=True,
        )
    module, mask = build(folder, "text"), tokens["attention_mask"].numpy().astype(bool)
    got = jax.jit(lambda ids, mask: blip2.embed_texts(module, ids, mask))(
        tokens["input_ids"].numpy(), mask
    )
    assert_states(got, wanted.hidden_states, mask)
    assert_near(got["pooler_output"], wanted.pooler_output)


@pytest.mark.slow
@pytest.mark.parametrize("layer", [0, 1])
def test_one_block_equals_torch_on_its_own(torch, tiny, layer):
    model, folder = tiny
    x, image = noise(2, QUERIES + 5, 32), noise(2, 7, 40)
    with torch.no_grad():
        wanted = model.qformer.encoder.layer[layer](
            torch.tensor(x), encoder_hidden_states=torch.tensor(image), query_length=QUERIES
        )
    block = build(folder, "image_text").qformer.blocks[layer]
    assert (block.cross is None) == (layer == 1)
    got = block(x, None, QUERIES, image)
    np.testing.assert_allclose(got, wanted.numpy(), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_files_and_texts_equal_torch(torch, tiny, tmp_path):
    model, folder = tiny
    paths = towers.pictures(tmp_path)
    with torch.no_grad():
        wanted = model(pixel_values=pixels_of(paths), **text_arguments(folder))
    found = towers.encode(blip2.load(weights=str(folder)), paths, 2)
    assert list(found) == ["image_embeds:mean"]
    assert_near(found["image_embeds:mean"], wanted.image_embeds.mean(1))
    tower = blip2.load(weights=str(folder), layers=["image_embeds:flatten"])
    assert tower.layers == {"image_embeds:flatten": QUERIES * 24}
    (texts,) = towers.encode(blip2.load(weights=str(folder), modality="text"), TEXTS, 2).values()
    assert_near(texts, wanted.text_embeds)


def text_arguments(folder):
    tokens = tokens_of(folder)
    return {name: tokens[name] for name in ("input_ids", "attention_mask")}


@pytest.mark.slow
def test_pairs_equal_torch(torch, tiny, tmp_path):
    model, folder = tiny
    paths = towers.pictures(tmp_path)
    with torch.no_grad():
        wanted = model(
            pixel_values=pixels_of(paths),
            **text_arguments(folder),
            use_image_text_matching_head=True,
        )
    layers = ["multimodal_embeds", "itm_logits", "last_hidden_state:mean"]
    tower = blip2.load(weights=str(folder), modality="image_text", layers=layers)
    pairs = list(zip(paths, TEXTS, strict=True))
    pairs.insert(1, (str(tmp_path / "none.png"), "a cat"))
    (first, second) = tower.batches(pairs, 2)
    assert (first.failed | second.failed) == {1: "no such file"}
    found = {name: values[[0, 2, 3]] for name, values in towers.encode(tower, pairs, 2).items()}
    states = wanted.text_embeds  # of queries and texts
    assert_near(found["itm_logits"], wanted.logits_per_image)
    assert_near(found["multimodal_embeds:mean"], states[:, :QUERIES].mean(1))
    there = text_arguments(folder)["attention_mask"][..., None]
    total = states[:, :QUERIES].sum(1) + (states[:, QUERIES:] * there).sum(1)
    assert_near(found["last_hidden_state:mean"], total / (QUERIES + there.sum(1)))


@pytest.mark.slow
def test_bfloat16_stays_near(tiny, tmp_path):
    _, folder = tiny
    pairs = list(zip(towers.pictures(tmp_path), TEXTS, strict=True))
    full, half = (
        towers.encode(blip2.load(weights=str(folder), modality="image_text", dtype=dtype), pairs)
        for dtype in ("float32", "bfloat16")
    )
    full, half = full["multimodal_embeds:mean"], half["multimodal_embeds:mean"]
    norms = np.linalg.norm(full, axis=1) * np.linalg.norm(half, axis=1)
    assert ((full * half).sum(axis=1) / norms > 0.99).all()


def test_what_config_json_omits_is_what_transformers_takes():
    """Saved configurations name only what differs in their halves."""
    from transformers import Blip2Config

    theirs = Blip2Config()
    ours = blip2.VisionConfig.read({})
    for name in VISION:
        assert getattr(ours, name) == getattr(theirs.vision_config, name)
    assert ours.layer_norm_eps == theirs.vision_config.layer_norm_eps
    assert ours.hidden_act == theirs.vision_config.hidden_act
    for name in Config.__dataclass_fields__:
        whose = theirs if hasattr(theirs, name) else theirs.qformer_config
        assert getattr(Config(), name) == getattr(whose, name)


@pytest.mark.slow
def test_what_is_refused(tiny, tmp_path):
    _, folder = tiny
    with pytest.raises(InputError, match="'audio' is none of image, text, image_text"):
        blip2.load(weights=str(folder), modality="audio")
    with pytest.raises(InputError, match="there is no layer 'text_embeds'"):
        blip2.load(weights=str(folder), layers=["text_embeds"])
    (tmp_path / "config.json").write_text('{"model_type": "blip-2"}')
    from safetensors.numpy import save_file

    save_file({"language_projection.weight": np.zeros((2, 2))}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="a BLIP-2 that generates"):
        blip2.load(weights=str(tmp_path))
