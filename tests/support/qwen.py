"""Tiny random Qwen vision-language models beside torch's, and prompts with images for both."""

import copy
import dataclasses
import json
import re
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file, save_file

from mmjax.encoders import layers
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.vlm import lvlm, qwen_tower, qwen_vl, rotary
from mmjax.encoders.vlm.decoder import Cache, past
from support.towers import save_random

TEXT = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
SECTIONS = [2, 1, 1]  # of heads 8 wide
IMAGE, START, END = 290, 291, 292
IDS = {"image_token_id": IMAGE, "vision_start_token_id": START, "vision_end_token_id": END}
# The images of each row, (width, height): of several shapes, several in a row and none.
ROWS = [[(200, 90)], [(60, 150), (84, 84)], [(120, 130)], []]
PREFIX = 4  # words that begin every row
QUICK = {"compiler_options": {"xla_backend_optimization_level": 0}}  # to compile


class Tiny(NamedTuple):
    """A model of torch, the folder where it is saved, and the same model here."""

    torch: Any
    folder: Any
    kind: qwen_tower.Kind
    patch: int
    bounds: tuple[int, int]  # least and largest area of an image
    graph: Any
    params: Any
    read: Any  # (params, prompts, prefix) -> states, logits, cache, every layer's states
    step: Any  # (params, blocks or None, ids, positions, cache, at) -> states, cache


def tiny(model, folder, kind, patch=14):
    import torch

    save_random(model, folder)
    with torch.no_grad():
        model.model.visual.patch_embed.proj.weight.mul_(0.1)  # so that its answers are about one
    model.save_pretrained(folder)
    graph, params = load(folder, kind)
    bounds = (4 * patch * patch, 40 * 4 * patch * patch)
    read, step = (jax.jit(partial(run, graph), **QUICK) for run in (_read, _step))
    return Tiny(model, folder, kind, patch, bounds, graph, params, read, step)


def load(folder, kind, **options):
    """A checkpoint as the towers load it."""
    about = hub.read_config(folder, kind.model_types)
    config = qwen_vl.text_config(folder, about, **kind.text)
    vision = qwen_vl.vision_config(folder, kind.vision, about)
    pixels = kind.pixels["mean"], kind.pixels["std"]

    def build():
        return kind.build(config, vision, kind.turns(config, about), *pixels)

    return hub.load_module(build, folder, kind.key_map(config), **options)


def _read(graph, params, prompts, prefix):
    model = hub.merge(graph, params)
    states, cache, kept = lvlm.read(model, prompts, lambda x: x, prefix)
    return states, model.decoder.logits(states), cache, kept


def _step(graph, params, blocks, ids, positions, past, at):
    decoder = hub.merge(graph, params).decoder
    blocks = decoder.blocks if blocks is None else [nnx.merge(*block) for block in blocks]
    states, past, _ = decoder.step(blocks, ids, positions, past, at, lambda x: ())
    return states, past


def processor(tiny):
    from transformers import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": tiny.bounds[0], "longest_edge": tiny.bounds[1]},
        patch_size=tiny.patch,
        image_mean=tiny.kind.pixels["mean"],
        image_std=tiny.kind.pixels["std"],
    )


def picture(size, seed=0):
    colours = np.random.default_rng(seed).integers(0, 256, (7, 5, 3)).astype(np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)


def view(tiny, image):
    return qwen_vl.view(image, tiny.patch, *tiny.bounds, Image.Resampling.BICUBIC)


def batch(tiny, rows=ROWS, side="right"):
    """Prompts of rows of images, and torch's arguments for the same."""
    import torch

    rng = np.random.default_rng(1)
    prefix = rng.integers(2, IMAGE, PREFIX)
    images, looks, tokens, parts = [], [], [], []
    for n, sizes in enumerate(rows):
        ids, about = [prefix, rng.integers(2, IMAGE, 1 + n)], [PREFIX + 1 + n]
        views = []
        for size in sizes:
            images.append(picture(size, len(images)))
            views.append(view(tiny, images[-1]))
            grid = tuple((views[-1].grid[:, 0] // 2).tolist())
            ids.append(np.array([START, *[IMAGE] * (grid[0] * grid[1]), END]))
            ids.append(rng.integers(2, IMAGE, 7 - n))
            about[-1] += 1
            about += [grid, 1 + 7 - n]
        ids.append(rng.integers(2, IMAGE, 4))
        about[-1] += 4
        tokens.append(np.concatenate(ids))
        parts.append(about)
        looks.append(
            qwen_vl.Patches(
                np.concatenate(
                    [np.zeros((0, 3 * tiny.patch**2), np.uint8), *(v[0] for v in views)]
                ),
                np.repeat(np.arange(len(views), dtype=np.int32), [len(v[0]) for v in views]) + 1,
                *(
                    np.concatenate([np.zeros((2, 0), np.int32), *(v[k] for v in views)], axis=1)
                    for k in (2, 3)
                ),
            )
        )
    count, length = len(rows), max(map(len, tokens))
    ids, real = np.zeros((count, length), np.int32), np.zeros((count, length), bool)
    positions = np.zeros((count, 3, length), np.int32)
    for n, row in enumerate(tokens):
        here = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
        ids[n, here], real[n, here] = row, True
        positions[n, :, here] = qwen_vl.positions(parts[n])
    shown = ids == IMAGE
    seen = np.where(shown, np.cumsum(shown, axis=1) - 1, -1)
    looks = qwen_tower.collate(looks, count, 3 * tiny.patch**2)
    arguments = {
        "input_ids": torch.tensor(ids).long(),
        "attention_mask": torch.tensor(real).long(),
        "mm_token_type_ids": torch.tensor(shown).int(),
        **processor(tiny)(images, return_tensors="pt"),
    }
    return lvlm.Prompts(ids, seen, positions, real, looks), arguments


def squares(rows, columns):
    """Row and column of each patch [2, P], the four of a 2 x 2 square together."""
    at = np.indices((rows, columns)).reshape(2, rows // 2, 2, columns // 2, 2)
    return at.transpose(0, 1, 3, 2, 4).reshape(2, -1)


def near(got, wanted, atol, mask=...):
    """Asserts that the largest difference from torch's is at most `atol`, and answers it."""
    wanted = wanted.detach().numpy() if hasattr(wanted, "detach") else np.asarray(wanted)
    got = np.asarray(got, np.float32)
    assert got.shape == wanted.shape
    difference = np.abs(got - wanted)[mask].max()
    assert difference <= atol, f"{difference} of {np.abs(wanted).max()}"
    print(f"largest difference {difference:.1e} of {np.abs(wanted[mask]).max():.2f}")
    return difference


def recorded(model, arguments):
    """Module's name -> its first input and its output, of one run of torch's."""
    import torch

    found, hooks = {}, []
    for name, module in model.named_modules():

        def hook(_, given, answer, name=name):
            found[name] = given[0] if given else None, answer

        hooks.append(module.register_forward_hook(hook))
    with torch.no_grad():
        model(**arguments)
    for hook in hooks:
        hook.remove()
    return found


class Told(NamedTuple):
    """What torch's modules did with one row of two images, and what ours need for the same."""

    record: dict[str, Any]
    model: Any  # ours
    prompts: lvlm.Prompts
    patches: qwen_vl.Patches  # [1, P, ...] without padding

    def given(self, name):
        """A module's first input [1, L, D]."""
        x = self.record[name][0].numpy()
        return x if x.ndim == 3 else x[None]

    def answer(self, name):
        x = self.record[name][1].numpy()
        return x if x.ndim == 3 else x[None]


def told(tiny):
    prompts, arguments = batch(tiny, [ROWS[1]])
    count = int(prompts.images.image.astype(bool).sum())
    looks = prompts.images
    patches = qwen_vl.Patches(
        looks.pixels[:, :count],
        looks.image[:, :count],
        looks.at[..., :count],
        looks.grid[..., :count],
    )
    model = hub.merge(tiny.graph, tiny.params)
    return Told(recorded(tiny.torch, arguments), model, prompts, patches)


def check_pixels(tiny):
    """Normalised patches and grids of images equal transformers' image processor's."""
    sizes = [size for row in ROWS for size in row] + [(9, 700), (1, 1), (1200, 15), (500, 500)]
    images = [picture(size, n) for n, size in enumerate(sizes)]
    wanted = processor(tiny)(images, return_tensors="np")
    views = [view(tiny, image) for image in images]
    grids = [[1, *v.grid[:, 0].tolist()] for v in views]
    np.testing.assert_array_equal(wanted["image_grid_thw"], grids)
    area = tiny.patch**2
    # Through a kernel that passes every pixel of the first frame on.
    embed = qwen_vl.PatchEmbed(
        tiny.patch, 3 * area, tiny.kind.pixels["mean"], tiny.kind.pixels["std"], rngs=nnx.Rngs(0)
    )
    kernel = np.zeros((3, 2, area, 3 * area), np.float32)
    kernel[:, 0] = np.eye(3 * area).reshape(3, area, 3 * area)
    embed.project.kernel[...] = kernel.reshape(6 * area, 3 * area)
    frames = wanted["pixel_values"].reshape(-1, 3, 2, area)
    np.testing.assert_array_equal(frames[:, :, 0], frames[:, :, 1])
    pixels = np.concatenate([v.pixels for v in views])[None]
    assert pixels.dtype == np.uint8
    near(embed(pixels), frames[:, :, 0].reshape(1, -1, 3 * area), 1e-5)


def check_patch_embed(told):
    wanted = told.answer("model.visual.patch_embed")
    near(told.model.vision.patches(told.patches.pixels), wanted, 1e-5)


def check_rotary(told):
    """Cosines and sines; torch's are there twice."""
    ours = {
        "model.language_model.rotary_emb": (told.model.decoder.turns, told.prompts.positions),
        "model.visual.rotary_pos_emb": (told.model.vision.turns, told.patches.at),
    }
    for name, (turns, positions) in ours.items():
        for got, wanted in zip(rotary.turn(turns, positions), told.record[name][1], strict=True):
            wanted = wanted.numpy().reshape(1, got.shape[1], -1)
            near(np.concatenate([got, got], axis=-1), wanted, 1e-5)


def check_decoder_blocks(told):
    decoder = told.model.decoder
    by = rotary.turn(decoder.turns, jnp.asarray(told.prompts.positions))
    length = told.prompts.ids.shape[1]
    mask = jnp.tril(jnp.ones((length, length), bool))[None]
    blocks = layers.unstack(decoder.blocks, decoder.config.num_hidden_layers)

    def attend(block, x):
        return block.attention.attend(*block.project(x, by), mask)

    run = jax.jit(lambda block, x: block.close(x, attend(block, x)))
    for n, block in enumerate(blocks):
        got = run(block, told.given(f"model.language_model.layers.{n}"))
        near(got, told.answer(f"model.language_model.layers.{n}"), 1e-5)


def check_model(tiny, side):
    """Every layer's states and the logits, of rows of differently many and shaped images."""
    import torch

    prompts, arguments = batch(tiny, side=side)
    with torch.no_grad():
        wanted = tiny.torch(**arguments, output_hidden_states=True)
    _, logits, _, kept = tiny.read(tiny.params, prompts, None)
    assert len(wanted.hidden_states) == len(kept)
    for ours, theirs in zip(kept, wanted.hidden_states, strict=True):
        near(ours, theirs, 1e-4, prompts.real)
    near(logits, wanted.logits, 1e-4, prompts.real)


def check_prefix(tiny, side):
    """A prefix that was read once, and what is behind it, equal the whole prompts."""
    prompts, _ = batch(tiny, side=side)
    whole, *_ = tiny.read(tiny.params, prompts, None)
    # The prefix alone, and the prompts with padding in its place.
    begins = prompts.real.cumsum(axis=1) <= PREFIX
    alone = prompts._replace(real=prompts.real & begins)
    _, _, cache, _ = tiny.read(tiny.params, alone, None)
    start = prompts.real[0].argmax()
    prefix = Cache(*(part[:, :1, start : start + PREFIX] for part in cache))
    rest = prompts._replace(real=prompts.real & ~begins)
    got, *_ = tiny.read(tiny.params, rest, prefix)
    near(got, whole, 1e-5, rest.real)


def check_steps(tiny):
    """Token by token equals all at once, with stacked layers and with a list of them."""
    prompts, _ = batch(tiny)
    whole, *_ = tiny.read(tiny.params, prompts, None)
    lengths, rows, count = prompts.real.sum(axis=1), np.arange(len(prompts.ids)), 4
    real = np.arange(prompts.real.shape[1])[None] < lengths[:, None] - count
    _, _, read, _ = tiny.read(tiny.params, prompts._replace(real=real), None)
    decoder = hub.merge(tiny.graph, tiny.params).decoder
    apart = layers.unstack(decoder.blocks, decoder.config.num_hidden_layers)
    for blocks in (None, [nnx.split(block) for block in apart]):
        before = past(read, read.k.shape[2] + 3)
        for at in (lengths - count + n for n in range(count)):
            where = prompts.positions[rows, :, at]
            got, before = tiny.step(tiny.params, blocks, prompts.ids[rows, at], where, before, at)
            near(got, np.asarray(whole)[rows, at], 1e-5)


def check_bfloat16(tiny):
    """The model in bfloat16 strays no farther from float32 than torch's own does, loosely."""
    import torch

    prompts, arguments = batch(tiny)
    full, *_ = tiny.read(tiny.params, prompts, None)
    _, params = load(tiny.folder, tiny.kind, dtype=jnp.bfloat16)
    half, logits, *_ = tiny.read(params, prompts, None)
    assert half.dtype == jnp.bfloat16
    assert logits.dtype == jnp.float32
    with torch.no_grad():
        theirs = copy.deepcopy(tiny.torch).to(torch.bfloat16).model(**arguments)[0].float().numpy()
    full = np.asarray(full)[prompts.real]
    half = np.asarray(half, np.float32)[prompts.real]
    ours, theirs = (
        np.linalg.norm(one - full) / np.linalg.norm(full) for one in (half, theirs[prompts.real])
    )
    print(f"relative drift in bfloat16: {ours:.4f}, torch's {theirs:.4f}")
    assert ours < min(0.05, 1.5 * theirs)


def check_positions(tiny):
    """M-RoPE's positions of random rows of words and images equal torch's."""
    import torch

    sides = st.tuples(st.integers(1, 9), st.integers(1, 9))
    words = st.integers(1, 6)

    @settings(max_examples=40, deadline=None)
    @given(words, st.lists(st.tuples(sides, words), max_size=4), st.booleans())
    def check(first, rest, left):
        parts = [first, *(part for pair in rest for part in pair)]
        got = qwen_vl.positions(parts)
        counts = [part if isinstance(part, int) else part[0] * part[1] for part in parts]
        kinds = np.repeat([0 if isinstance(part, int) else 1 for part in parts], counts)
        real = np.pad(np.ones(len(kinds), int), (3, 0) if left else (0, 3))
        kinds = np.pad(kinds, (3, 0) if left else (0, 3))
        wanted, _ = tiny.torch.model.get_rope_index(
            torch.tensor(kinds)[None],
            torch.tensor(kinds)[None],
            torch.tensor([[1, 2 * rows, 2 * columns] for (rows, columns), _ in rest]),
            attention_mask=torch.tensor(real)[None],
        )
        np.testing.assert_array_equal(got, wanted[:, 0].numpy()[:, real.astype(bool)])

    check()


def check_names(tiny, folder):
    """Checkpoints of every age: flat or nested settings, names with all, some or no parts."""
    tensors = load_file(tiny.folder / "model.safetensors")
    about = json.loads((tiny.folder / "config.json").read_text())
    text = about.pop("text_config")
    theta = text["rope_parameters"].pop("rope_theta")
    scaling = {"type": "mrope", **text.pop("rope_parameters"), "rope_type": "default"}
    flat = {**text, **about, "rope_scaling": scaling, "rope_theta": theta}
    nested = {**about, "text_config": {**text, "rope_scaling": scaling, "rope_theta": theta}}
    ages = [(flat, "visual.", "model."), (nested, "model.visual.", "model.language_model.")]
    for configuration, visual, rest in ages:
        renamed = {}
        for name, value in tensors.items():
            name = re.sub(r"^(model\.)?(language_model\.)?", "", name)
            if name.startswith("visual."):
                name = visual + name.removeprefix("visual.")
            elif not name.startswith("lm_head."):
                name = rest + name
            renamed[name] = value
        save_file(renamed, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(configuration))
        graph, params = load(folder, tiny.kind)
        assert graph == tiny.graph
        jax.tree.map(np.testing.assert_array_equal, params, tiny.params)


def check_defaults(kind, theirs):
    """theirs: transformers' configuration of a model, made without arguments."""
    vision = kind.vision()
    for name in kind.vision.__dataclass_fields__:
        assert getattr(vision, name) == getattr(theirs.vision_config, name)
    needed = {**dict.fromkeys(qwen_vl.NUMBERS, 16), "num_attention_heads": 4}
    config = qwen_vl.text_config(None, {"text_config": needed}, **kind.text)
    for name in ("rms_norm_eps", "hidden_act", "tie_word_embeddings"):
        assert getattr(config, name) == getattr(theirs.get_text_config(), name, False)
    config = dataclasses.replace(config, head_dim=128)
    theta = theirs.text_config.rope_parameters["rope_theta"]
    assert kind.turns(config, {}).frequencies == rotary.frequencies(128, theta)
