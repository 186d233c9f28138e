"""Phi-3.5-vision against torch's CLIP and Phi-3, put together as its published code does it."""

import json
import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps
from safetensors.numpy import load_file, save_file
from support.speakers import ask, byte_tokenizer
from support.towers import save_random

from mmjax.core.errors import InputError
from mmjax.encoders import layers
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.towers import phi3_v
from mmjax.encoders.vlm import generation, lvlm, phi3_v_images
from mmjax.encoders.vlm.lvlm import Prompts
from mmjax.encoders.vlm.phi3_v_images import collate, grid, layout, tokens, view

SIDE, MERGED = 32, 2  # squares of 4 x 4 patches
FIRST = 40  # the window of the first training
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": SIDE,
    "patch_size": 8,
}
TEXT = {
    "vocab_size": 120,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 32 * FIRST,
}
FACTORS = {
    "short_factor": [1.0, 1.05, 1.1, 1.3, 1.5, 2.0],
    "long_factor": [1.1, 1.4, 2.6, 7.7, 24.0, 62.5],
}
CONFIG = {
    **TEXT,
    "model_type": "phi3_v",
    "original_max_position_embeddings": FIRST,
    "rope_scaling": {"type": "su", **FACTORS},
    "rope_theta": 10000.0,
    "sliding_window": 131072,
    "vision_config": VISION,
    "img_processor": {
        "name": "clip_vision_model",
        "model_name": "openai/clip-vit-large-patch14-336",
        "image_dim_out": VISION["hidden_size"],
        "num_img_tokens": MERGED**2,
    },
    "embd_layer": {
        "embedding_cls": "image",
        "hd_transform_order": "sub_glb",
        "projection_cls": "mlp",
        "use_hd_transform": True,
        "with_learnable_separator": True,
    },
}
SIZES = [(70, 50), (30, 100), (64, 64), (1, 1), (200, 40), (33, 32), (5, 9)]
IMAGES = "model.vision_embed_tokens."


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def parts(torch, tmp_path_factory):
    """torch's halves, a random projection, and the folder of it all under the published names."""
    from safetensors.torch import save_file
    from transformers import CLIPVisionConfig, CLIPVisionModel, Phi3Config, Phi3ForCausalLM

    clip = CLIPVisionModel(CLIPVisionConfig(**VISION))
    phi3 = Phi3ForCausalLM(
        Phi3Config(
            **TEXT,
            pad_token_id=0,
            original_max_position_embeddings=FIRST,
            rope_scaling={"type": "longrope", **FACTORS},
        )
    )
    for name, half in (("clip", clip), ("phi3", phi3)):
        save_random(half, tmp_path_factory.mktemp(name))
    square, width = 4 * VISION["hidden_size"], TEXT["hidden_size"]
    project = torch.nn.Sequential(
        torch.nn.Linear(square, width), torch.nn.GELU(), torch.nn.Linear(width, width)
    )
    marks = {"glb_GN": torch.randn(1, 1, square), "sub_GN": torch.randn(1, 1, 1, square)}
    before = IMAGES + "img_processor.vision_model."
    found = {
        **phi3.state_dict(),
        **{before + k.removeprefix("vision_model."): v for k, v in clip.state_dict().items()},
        **{f"{IMAGES}img_projection.{k}": v for k, v in project.state_dict().items()},
        **{IMAGES + k: v for k, v in marks.items()},
    }
    folder = tmp_path_factory.mktemp("whole")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file({k: v.contiguous() for k, v in found.items()}, folder / "model.safetensors")
    return {"clip": clip, "phi3": phi3, "project": project, **marks, "folder": folder}


def load(folder, window):
    given = hub.read_config(folder, phi3_v.MODEL_TYPES)
    config, vision = phi3_v.text_config(folder, given), phi3_v.vision_config(folder, given)
    turns = phi3_v.turns(folder, config, given, window)
    made = hub.load_module(
        lambda: phi3_v.build(config, vision, turns, MEAN, STD),
        folder,
        phi3_v.key_map(config, vision),
    )
    return hub.merge(*made)


@cache
def loaded(folder, window):
    return load(folder, window)


def picture(size, seed=0):
    colours = np.random.default_rng(seed).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)


def published(torch, image, num_crops, side):
    """The published image processor: normalised [1 + C, 3, S, S], the overview first; grid."""
    lying = image.width < image.height
    image = image.transpose(Image.Transpose.TRANSPOSE) if lying else image
    ratio = image.width / image.height
    scale = 1
    while scale * math.ceil(scale / ratio) <= num_crops:
        scale += 1
    width = (scale - 1) * side
    image = image.resize((width, int(width / ratio)), Image.Resampling.BILINEAR)
    lacking = math.ceil(image.height / side) * side - image.height
    border = (0, lacking // 2, 0, lacking - lacking // 2)
    image = ImageOps.expand(image, border, fill=(255, 255, 255))
    image = image.transpose(Image.Transpose.TRANSPOSE) if lying else image
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    whole = torch.nn.functional.interpolate(x[None], size=(side, side), mode="bicubic")
    squares = x.unfold(1, side, side).unfold(2, side, side)  # [3, rows, columns, S, S]
    grid = squares.shape[1:3]
    return torch.cat([whole, squares.permute(1, 2, 0, 3, 4).reshape(-1, 3, side, side)]), grid


def image_tokens(torch, parts, image, num_crops):
    """The published embedding, square by square: [M, D]."""
    x, (rows, columns) = published(torch, image, num_crops, SIDE)
    seen = parts["clip"](x, output_hidden_states=True).hidden_states[-2][:, 1:]
    seen = seen.reshape(len(seen), 2 * MERGED, 2 * MERGED, -1)
    newline, separator = parts["sub_GN"].reshape(-1), parts["glb_GN"].reshape(-1)
    line = []

    def token(square, row, column):
        four = [seen[square, 2 * row + i, 2 * column + j] for i in (0, 1) for j in (0, 1)]
        line.append(torch.cat(four))

    for row in range(rows * MERGED):
        for column in range(columns * MERGED):
            square = 1 + row // MERGED * columns + column // MERGED
            token(square, row % MERGED, column % MERGED)
        line.append(newline)
    line.append(separator)
    for row in range(MERGED):
        for column in range(MERGED):
            token(0, row, column)
        line.append(newline)
    return parts["project"](torch.stack(line))


def assert_near(got, wanted, atol):
    np.testing.assert_allclose(np.asarray(got), np.asarray(wanted), atol=atol, rtol=0)


@pytest.mark.parametrize("num_crops", [1, 4, 16])
@pytest.mark.parametrize("size", SIZES)
def test_views_are_the_published_transform(torch, size, num_crops):
    image = picture(size)
    made = view(image, num_crops, SIDE, MERGED)
    wanted, (rows, columns) = published(torch, image, num_crops, SIDE)
    wanted = wanted.permute(0, 2, 3, 1).numpy()
    assert len(made.pixels) == rows * columns <= num_crops
    assert made.pixels.dtype == np.uint8
    found = np.concatenate([made.overview[None], made.pixels.astype(np.float32)])
    found = (found / 255 - np.float32(MEAN)) / np.float32(STD)
    assert_near(found, wanted, 1e-5)
    shown = np.round((wanted[1:] * np.float32(STD) + np.float32(MEAN)) * 255).astype(np.uint8)
    np.testing.assert_array_equal(made.pixels, shown)


def test_a_view_of_the_published_size(torch):
    image = picture((500, 375))
    made = view(image, 4)
    wanted, grid = published(torch, image, 4, 336)
    assert tuple(grid) == (2, 2)
    found = np.concatenate([made.overview[None], made.pixels.astype(np.float32)])
    found = (found / 255 - np.float32(MEAN)) / np.float32(STD)
    assert_near(found, wanted.permute(0, 2, 3, 1), 1e-5)


@pytest.mark.parametrize("num_crops", [1, 3, 4, 16])
def test_token_counts(num_crops):
    """The published formula of the padded size; every token of every square stands once."""
    rng = np.random.default_rng(0)
    sizes = [(1, 1), (336, 336), (300, 1), (1, 300), (5376, 16), (8000, 50), (50, 8000)]
    for width, height in [*sizes, *rng.integers(20, 5000, (200, 2)).tolist()]:
        ratio, scale = max(width, height) / min(width, height), 1
        while scale * math.ceil(scale / ratio) <= num_crops:
            scale += 1
        w, h = (scale - 1) * 336, int((scale - 1) * 336 / ratio)
        h += -h % 336
        w, h = (w, h) if width >= height else (h, w)
        places = layout(*grid(width, height, num_crops))
        assert len(places) == int((h // 336 * w // 336 + 1) * 144 + 1 + (h // 336 + 1) * 12)
        squares = w * h // 336**2
        assert squares <= num_crops
        shown = np.sort(places[places > 1])
        np.testing.assert_array_equal(shown, 2 + np.arange(144 * (squares + 1)))
        assert (places == 1).sum() == 1


def test_extreme_images():
    """A pixel, and lines just within and beyond what the published code can resize."""
    assert tokens(view(Image.new("RGB", (1, 1)), 16)) == 2509
    assert tokens(view(Image.new("RGB", (1, 1)), 4)) == 757
    assert view(Image.new("RGB", (4 * SIDE, 1)), 4, SIDE, MERGED).pixels.shape[0] == 4
    for size in ((4 * SIDE + 1, 1), (1, 4 * SIDE + 1)):
        with pytest.raises(ValueError, match="129 by 1 pixels: one side is over 128 times"):
            view(Image.new("RGB", size), 4, SIDE, MERGED)


@pytest.mark.slow
def test_every_block_of_the_vision_tower_equals_torch(torch, parts):
    model = loaded(parts["folder"], FIRST)
    x = np.random.default_rng(0).normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = parts["clip"](torch.tensor(x).permute(0, 3, 1, 2), output_hidden_states=True)
    wanted = wanted.hidden_states
    state = model.vision.input_norm(model.vision.tokens(x))
    assert_near(state, wanted[0], 1e-5)
    depth = VISION["num_hidden_layers"] - 1
    for n, block in enumerate(layers.unstack(model.vision.blocks, depth)):
        state = block(state)
        assert_near(state, wanted[n + 1], 1e-5)
    assert_near(model.vision(x), wanted[-2][:, 1:], 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("length", [FIRST, FIRST + 8])
@pytest.mark.parametrize("side", ["left", "right"])
def test_every_block_of_the_decoder_equals_torch(torch, parts, length, side):
    """Prompts within the first window take the short factors, others the long ones."""
    real = np.ones((2, length), bool)
    real[1, slice(0, 7) if side == "left" else slice(length - 7, length)] = False
    ids = np.random.default_rng(1).integers(1, TEXT["vocab_size"], real.shape)
    where = np.maximum(np.cumsum(real, axis=1) - 1, 0)
    with torch.no_grad():
        wanted = parts["phi3"](
            torch.tensor(ids),
            attention_mask=torch.tensor(real).long(),
            position_ids=torch.tensor(where),
            output_hidden_states=True,
        )
    decoder = loaded(parts["folder"], length).decoder
    steps = 10_000.0 ** (np.arange(0, 12, 2) / 12)
    factors = FACTORS["short_factor" if length == FIRST else "long_factor"]
    assert_near(decoder.turns.frequencies, 1 / (np.array(factors) * steps), 1e-7)
    last, _, kept = decoder.read(
        decoder.embed(ids), where[:, None].astype(np.int32), real, lambda states: states
    )
    for ours, theirs in zip(kept, wanted.hidden_states, strict=True):
        assert_near(np.asarray(ours)[real], theirs.numpy()[real], 1e-5)
    assert_near(np.asarray(decoder.logits(last))[real], wanted.logits.numpy()[real], 1e-4)


def test_the_scale_of_the_published_windows(tmp_path):
    given = {**CONFIG, "max_position_embeddings": 131072, "original_max_position_embeddings": 4096}
    config = phi3_v.text_config(tmp_path, given)
    made = phi3_v.turns(tmp_path, config, given, 4096)
    assert abs(made.scale - 1.1902380714238083) < 1e-12  # sqrt(1 + ln 32 / ln 4096)
    plain = phi3_v.turns(tmp_path, config, {**given, "rope_scaling": None}, 4097)
    assert plain.scale == 1
    assert_near(plain.frequencies, 10_000.0 ** (-np.arange(0, 12, 2) / 12), 1e-7)


@pytest.mark.slow
def test_image_tokens_equal_torch(torch, parts):
    """Images of different shapes in one batch, each as if it were alone."""
    model = loaded(parts["folder"], FIRST)
    images = [picture(size, n) for n, size in enumerate(SIZES)]
    views = [view(image, 4, SIDE, MERGED) for image in images]
    got, added = jax.jit(model.look)(collate(views, 8))
    assert added is None
    assert got.shape[0] == 8
    for image, made, ours in zip(images, views, got, strict=False):
        with torch.no_grad():
            wanted = image_tokens(torch, parts, image, 4)
        assert len(wanted) == tokens(made)
        assert_near(ours[: len(wanted)], wanted, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("longer", [0, 5])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_whole_equals_torch(torch, parts, side, longer):
    """Within the first window, which the second row fills, and beyond it."""
    images = [picture(size, n) for n, size in enumerate(SIZES[:3])]
    views = [view(image, 4, SIDE, MERGED) for image in images]
    rng = np.random.default_rng(2)
    rows = []  # each with the text before and behind its image
    for made, behind in zip(views, (6, 11 + longer, 3), strict=True):
        words = rng.integers(1, TEXT["vocab_size"], 4 + behind)
        seen = [*[-1] * 4, *range(tokens(made)), *[-1] * behind]
        rows.append((np.insert(words, 4, np.zeros(tokens(made), int)), np.array(seen)))
    window = max(len(ids) for ids, _ in rows)
    assert window == FIRST + longer
    length = lvlm.bucket(window)

    def padded(array, value):
        gap = length - len(array)
        return np.pad(array, (gap, 0) if side == "left" else (0, gap), constant_values=value)

    ids = np.stack([padded(ids, 0) for ids, _ in rows])
    seen = np.stack([padded(seen, -1) for _, seen in rows])
    real = np.stack([padded(np.ones(len(ids), bool), False) for ids, _ in rows])
    where = np.maximum(np.cumsum(real, axis=1) - 1, 0)
    prompts = Prompts(ids, seen, where[:, None].astype(np.int32), real, collate(views, 3))
    model = loaded(parts["folder"], window)

    phi3 = parts["phi3"]
    with torch.no_grad():
        x = phi3.model.embed_tokens(torch.tensor(ids))
        for row, image in enumerate(images):
            x[row, seen[row] >= 0] = image_tokens(torch, parts, image, 4)
        wanted = phi3(
            inputs_embeds=x,
            attention_mask=torch.tensor(real).long(),
            position_ids=torch.tensor(where),
            output_hidden_states=True,
        )

    @jax.jit
    def read(prompts):
        states, _, kept = lvlm.read(model, prompts, lambda states: states)
        return model.decoder.logits(states), kept

    logits, kept = read(prompts)
    assert_near(np.asarray(logits)[real], wanted.logits.numpy()[real], 1e-4)
    for ours, theirs in zip(kept, wanted.hidden_states, strict=True):
        assert_near(np.asarray(ours)[real], theirs.numpy()[real], 1e-4)


def test_a_batch_is_padded_with_zeros():
    made = [view(picture(size), 4, SIDE, MERGED) for size in ((64, 64), (200, 20))]
    batch = collate(made[1:] + made[:1], 3)
    shapes = [part.shape for part in batch]
    assert shapes == [(3, 4, SIDE, SIDE, 3), (3, SIDE, SIDE, 3), (3, 28)]
    for part, alone in zip(batch, made[0], strict=True):
        np.testing.assert_array_equal(part[1][: len(alone)], alone)
        assert not part[1][len(alone) :].any()
        assert not part[2].any()


def published_shapes(depth):
    """Every tensor of microsoft/Phi-3.5-vision-instruct, of `depth` of its 32 layers."""
    shapes = {"model.embed_tokens.weight": (32064, 3072), "lm_head.weight": (32064, 3072)}
    for n in range(depth):
        layer = f"model.layers.{n}."
        shapes |= {
            layer + "self_attn.qkv_proj.weight": (9216, 3072),
            layer + "self_attn.o_proj.weight": (3072, 3072),
            layer + "mlp.gate_up_proj.weight": (16384, 3072),
            layer + "mlp.down_proj.weight": (3072, 8192),
            layer + "input_layernorm.weight": (3072,),
            layer + "post_attention_layernorm.weight": (3072,),
        }
    tower = IMAGES + "img_processor.vision_model."
    shapes |= {
        "model.norm.weight": (3072,),
        IMAGES + "glb_GN": (1, 1, 4096),
        IMAGES + "sub_GN": (1, 1, 1, 4096),
        IMAGES + "img_projection.0.weight": (3072, 4096),
        IMAGES + "img_projection.0.bias": (3072,),
        IMAGES + "img_projection.2.weight": (3072, 3072),
        IMAGES + "img_projection.2.bias": (3072,),
        tower + "embeddings.class_embedding": (1024,),
        tower + "embeddings.patch_embedding.weight": (1024, 3, 14, 14),
        tower + "embeddings.position_embedding.weight": (577, 1024),
    }
    norms = ["pre_layrnorm", "post_layernorm"]
    linears = {}
    for n in range(24):
        layer = f"encoder.layers.{n}."
        norms += [layer + "layer_norm1", layer + "layer_norm2"]
        linears |= {layer + f"self_attn.{part}_proj": (1024, 1024) for part in "qkv"}
        linears |= {layer + "self_attn.out_proj": (1024, 1024)}
        linears |= {layer + "mlp.fc1": (4096, 1024), layer + "mlp.fc2": (1024, 4096)}
    for name, shape in {**dict.fromkeys(norms, (1024,)), **linears}.items():
        shapes |= {tower + name + ".weight": shape, tower + name + ".bias": shape[:1]}
    return shapes


def test_the_published_names_fill_the_published_model(tmp_path):
    """On a file of holes as long as the checkpoint, of which nothing is read."""
    assert sum(map(math.prod, published_shapes(32).values())) == 4_146_621_440  # "4.15B"
    shapes = published_shapes(3)
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    packed = json.dumps(header).encode()
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(len(packed).to_bytes(8, "little") + packed)
        file.truncate(8 + len(packed) + end)
    given = {
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 3,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "sliding_window": 262144,
        "rope_scaling": {"type": "su", "short_factor": [1.05] * 48, "long_factor": [64] * 48},
        "img_processor": {**CONFIG["img_processor"], "image_dim_out": 1024, "num_img_tokens": 144},
        "embd_layer": CONFIG["embd_layer"],
    }
    config = phi3_v.text_config(tmp_path, given)
    vision = phi3_v.vision_config(tmp_path, given)
    turns = phi3_v.turns(tmp_path, config, given, 4096)
    assert (vision.depth, vision.merged, config.head_dim) == (23, 12, 96)
    _, params = hub.load_module(
        lambda: phi3_v.build(config, vision, turns, MEAN, STD),
        tmp_path,
        phi3_v.key_map(config, vision),
        jnp.bfloat16,
        lazy=True,
    )
    assert params["vision"]["blocks"]["mlp"]["up"]["kernel"].shape == (23, 1024, 4096)
    assert params["decoder"]["blocks"]["mlp"]["gate"]["kernel"].shape == (3, 3072, 8192)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model_type": "qwen2_vl"}, "qwen2_vl"),
        ({"hidden_size": None}, "hidden_size"),
        ({"attention_bias": True}, "biases"),
        ({"hidden_act": "selu"}, "selu"),
        ({"sliding_window": 16}, "16 tokens at once, not 64"),
        ({"max_position_embeddings": 32}, "32 tokens at once, not 64"),
        ({"rope_scaling": {"type": "yarn", **FACTORS}}, "yarn"),
        ({"rope_scaling": {"type": "su", **FACTORS, "short_mscale": 1.2}}, "short_mscale"),
        ({"rope_scaling": {"type": "su", "short_factor": [1.0] * 6}}, "0 numbers as long_factor"),
        ({"img_processor": None}, "name None in img_processor"),
        ({"img_processor": {**CONFIG["img_processor"], "num_img_tokens": 9}}, "num_img_tokens 9"),
        ({"img_processor": {**CONFIG["img_processor"], "layer_idx": -4}}, "layer -4"),
        ({"img_processor": {**CONFIG["img_processor"], "type_feature": "cls"}}, "type_feature"),
        ({"embd_layer": {**CONFIG["embd_layer"], "hd_transform_order": "glb_sub"}}, "glb_sub"),
        ({"embd_layer": {**CONFIG["embd_layer"], "projection_cls": "linear"}}, "projection_cls"),
        ({"embd_layer": None}, "embedding_cls"),
        ({"vision_config": None}, "image_dim_out 32"),
        ({"vision_config": {**VISION, "image_size": 40}}, "squares of 40 pixels"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_supported_is_said(tmp_path, change, why):
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **change}))
    with pytest.raises(InputError, match=why):
        load(tmp_path, 64)


def test_a_checkpoint_that_lacks_or_has_too_much(parts, tmp_path):
    from safetensors.numpy import load_file, save_file

    (tmp_path / "config.json").write_text((parts["folder"] / "config.json").read_text())
    found = load_file(parts["folder"] / "model.safetensors")
    again = {IMAGES + "wte.weight": found["model.embed_tokens.weight"]}
    save_file({**found, **again}, tmp_path / "model.safetensors")
    load(tmp_path, FIRST)  # the embedding a second time is no fault
    save_file({**found, IMAGES + "extra": np.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="extra is not in the key map"):
        load(tmp_path, FIRST)
    del found["model.layers.1.self_attn.qkv_proj.weight"]
    save_file(found, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"attention\.query\.kernel of layer 1"):
        load(tmp_path, FIRST)


def test_how_images_are_cut_is_read(tmp_path):
    with pytest.raises(InputError, match="does not say num_crops"):
        phi3_v_images.read(tmp_path)
    assert phi3_v_images.read(tmp_path, 16) == {"num_crops": 16, "mean": MEAN, "std": STD}
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({"num_crops": 4, "image_mean": [0.5] * 3, "image_std": [0.2] * 3}))
    found = {"num_crops": 4, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    assert phi3_v_images.read(tmp_path) == found
    with pytest.raises(InputError, match="num_crops 0"):
        phi3_v_images.read(tmp_path, 0)
    path.write_text(json.dumps({"num_crops": 4, "image_mean": [0.5]}))
    with pytest.raises(InputError, match="no three numbers"):
        phi3_v_images.read(tmp_path)
    path.write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        phi3_v_images.read(tmp_path)


def test_places_are_read_across_the_image():
    """Two squares beside each other: a line goes through both, then comes a newline."""
    found = layout(1, 2, 2).tolist()
    assert found == [6, 7, 10, 11, 0, 8, 9, 12, 13, 0, 1, 2, 3, 0, 4, 5, 0]


@pytest.mark.slow
def test_the_tower_asks_as_published(parts, tmp_path, monkeypatch):
    """A vocabulary of bytes: what is said is nonsense, what is asked is not."""
    special = ("<|endoftext|>", "<|user|>", "<|end|>", "<|assistant|>", "<s>")
    template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    tokenizer = byte_tokenizer(special, template)
    folder = tmp_path / "phi"
    folder.mkdir()
    tensors = load_file(parts["folder"] / "model.safetensors")
    rng = np.random.default_rng(0)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = rng.standard_normal((300, TEXT["hidden_size"]), np.float32)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": 300}))
    tokenizer.save_pretrained(str(folder))
    about = {"num_crops": 2, "image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    (folder / "prompt.txt").write_text("{image}Say it.")
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    monkeypatch.setattr(phi3_v, "ENDS", {"<|end|>": end})
    paths = []
    for number, size in enumerate(((70, 50), (32, 32), (30, 100))):
        paths.append(str(tmp_path / f"{number}.png"))
        picture(size).save(paths[-1])
    tower = phi3_v.load(
        weights=str(folder),
        prompt=str(folder / "prompt.txt"),
        window=FIRST * 4,
        answers=generation.GenerationOptions(max_new_tokens=4),
    )
    (asked,) = next(tower.batches(paths, 4)).arrays
    words = asked.ids[0][asked.real[0] & (asked.seen[0] < 0)]
    assert tokenizer.decode(words) == "<s>\nSay it.<|end|>\n<|assistant|>\n"
    before = len(tokenizer("<s><|user|>\n")["input_ids"])
    assert (asked.positions[:3, :, 0] == before).all()
    together, alone = ask(tower, paths), ask(tower, paths[:1], size=1)
    assert together[0][-1] == alone[0][-1]
    np.testing.assert_allclose(together[0][0], alone[0][0], atol=1e-4)
    assert len(together) == 3
