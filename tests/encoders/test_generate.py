"""Answers and the vectors taken from them, against transformers' own generation."""

import jax
import numpy as np
import pytest
from support.speakers import ask, save_pictures, save_speaker

from mmjax.encoders.towers import qwen2_vl
from mmjax.encoders.vlm import generation
from mmjax.parallel import mesh, param_sharding

pytestmark = pytest.mark.slow

PROMPT = "{image}Say [Category] {Toys}."
LONGEST = 12
# Of one bucket and of another; each combination is a program to compile.
SHAPES = ((84, 84), (140, 60), (60, 140), (84, 84), (56, 56))


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory):
    """Every tower compiles its own programs, here the same ones again and again."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("programs")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    yield
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("speaker")
    (folder / "prompt.txt").write_text(PROMPT)
    save_pictures(folder / "pictures", 9, shapes=SHAPES)
    return save_speaker(folder)


@pytest.fixture(scope="module")
def paths(speaker):
    return sorted(map(str, (speaker / "pictures").iterdir()))


def load(speaker, pooling="eos", prompt="prompt.txt", layers=(-1, 1), **options):
    answers = generation.GenerationOptions(**{"max_new_tokens": LONGEST, **options})
    return qwen2_vl.load(
        weights=str(speaker),
        prompt=str(speaker / prompt),
        pooling=pooling,
        layers=layers,
        answers=answers,
    )


@pytest.fixture(scope="module")
def reference(speaker, paths):
    """Of each input: text, whether it ended, states [N + 1, L, D] of all, the prompt's length."""
    import torch
    from transformers import (
        AutoTokenizer,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessorPil,
    )

    model = Qwen2VLForConditionalGeneration.from_pretrained(speaker).eval()
    tokenizer = AutoTokenizer.from_pretrained(speaker)
    processor = Qwen2VLImageProcessorPil.from_pretrained(speaker)
    image, end = (tokenizer.convert_tokens_to_ids(f"<|{t}|>") for t in ("image_pad", "im_end"))
    from PIL import Image

    found = []
    for path in paths:
        seen = processor([Image.open(path)], return_tensors="pt")
        tokens = int(seen["image_grid_thw"].prod()) // 4
        shown = f"<|vision_start|>{'<|image_pad|>' * tokens}<|vision_end|>"
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": PROMPT.replace("{image}", shown)}],
            tokenize=False,
            add_generation_prompt=True,
        )
        ids = torch.tensor([tokenizer(text)["input_ids"]])

        def given(ids, seen=seen):
            kinds = {"mm_token_type_ids": (ids == image).int()}
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **kinds, **seen}

        with torch.no_grad():
            whole = model.generate(**given(ids), max_new_tokens=LONGEST, do_sample=False)
            new = whole[0, ids.shape[1] :].tolist()
            ended = new[-1] in model.generation_config.eos_token_id
            if not ended:
                whole = torch.cat([whole, torch.tensor([[end]])], 1)
            states = model(**given(whole), output_hidden_states=True).hidden_states
        said = tokenizer.decode(new[:-1] if ended else new, skip_special_tokens=True)
        found.append((said, ended, torch.cat(states).numpy(), ids.shape[1]))
    assert 2 <= sum(ended for _, ended, *_ in found) < len(found)  # both kinds are tested
    return found


def test_answers_and_their_end_states_are_torchs(speaker, paths, reference):
    tower = load(speaker)
    assert list(tower.layers) == ["hidden_states.3:eos", "hidden_states.1:eos"]
    found = ask(tower, paths)  # 9 rows through 4 places
    for n, (said, ended, states, _) in enumerate(reference):
        last, first, answer = found[n]
        assert (answer.text, answer.ended) == (said, ended)
        np.testing.assert_allclose(last, states[-1, -1], atol=1e-4)
        np.testing.assert_allclose(first, states[1, -1], atol=1e-4)


@pytest.mark.parametrize("pooling", ["last_prompt", "mean_prompt", "mean_generated"])
def test_other_poolings(speaker, paths, reference, pooling):
    tower = load(speaker, pooling)
    if tower.speaks:
        found = ask(tower, paths)
    else:
        found = {}
        for rows, values in tower.stream(tower.batches(paths, 4), tower.encode, tower.params):
            found |= {row: [v[i] for v in values] for i, row in enumerate(rows.tolist())}
    for n, (_, _, states, length) in enumerate(reference):
        wanted = {
            "last_prompt": states[:, length - 1],
            "mean_prompt": states[:, :length].mean(axis=1),
            "mean_generated": states[:, length:].mean(axis=1),
        }[pooling]
        np.testing.assert_allclose(found[n][0], wanted[3], atol=1e-4)
        np.testing.assert_allclose(found[n][1], wanted[1], atol=1e-4)


def test_neither_batch_nor_neighbours_change_an_answer(speaker, paths):
    one, many = ask(load(speaker), paths, size=1), ask(load(speaker), paths, size=16)
    for n in range(len(paths)):
        assert one[n][-1] == many[n][-1]
        np.testing.assert_allclose(one[n][0], many[n][0], atol=1e-4)


def test_the_prefix_is_read_once_and_changes_nothing(speaker, paths):
    """The image at the end: all of the prompt is prefix."""
    (speaker / "behind.txt").write_text("Say [Category] {Toys}.{image}")
    tower = load(speaker, "last_prompt", "behind.txt")
    batch = next(tower.batches(paths, 4)).arrays[0]
    assert batch.positions[:, 0, 0].min() > 60  # a byte is a token
    (speaker / "slot.txt").write_text("Say [Category] {Toys}.{title}{image}")
    slow = load(speaker, "last_prompt", "slot.txt")  # a slot before it leaves the template's part
    assert slow.modality == "image_title"
    collected = []
    for each, inputs in ((tower, paths), (slow, [(path, "") for path in paths])):
        found = np.zeros((len(paths), 32))
        for rows, values in each.stream(each.batches(inputs, 4), each.encode, each.params):
            found[rows] = values[0]
        collected.append(found)
    np.testing.assert_allclose(*collected, atol=1e-4)


def test_drawn_answers_depend_on_row_and_seed_alone(speaker, paths):
    def texts(seed, size):
        found = ask(load(speaker, temperature=1.0, seed=seed), paths, size)
        return [found[n][-1].text for n in range(len(paths))]

    assert texts(1, 4) == texts(1, 8)
    assert texts(1, 4) != texts(2, 4)


@pytest.mark.parametrize("spec", ["model=2", "data=2,model=2", "data=4"])
def test_split_over_devices_equals_one(speaker, paths, spec):
    grid = mesh.make(spec)
    one, tower = ask(load(speaker), paths), load(speaker)
    # Everything that can be is split over `data` too, as a large model's arrays are.
    params = param_sharding.spread(tower.params, grid, large=1)
    kernel = params["decoder"]["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // grid.size
    found = {}
    made = tower.batches(paths, 4)
    for rows, values in tower.stream(made, tower.encode, params, mesh.rows(grid)):
        found |= {row: [v[i] for v in values] for i, row in enumerate(rows.tolist())}
    for n in range(len(paths)):
        assert found[n][-1] == one[n][-1]
        np.testing.assert_allclose(found[n][0], one[n][0], atol=1e-4)


def test_prompt_poolings_split_over_devices(speaker, paths):
    grid = mesh.make("data=2,model=2")
    tower = load(speaker, "last_prompt")
    params = param_sharding.spread(tower.params, grid, large=1)
    collected = []
    for given, rows in ((tower.params, None), (params, mesh.rows(grid))):
        found = np.zeros((len(paths), 32))
        for at, values in tower.stream(tower.batches(paths, 4), tower.encode, given, rows):
            found[at] = values[0]
        collected.append(found)
    np.testing.assert_allclose(*collected, atol=1e-4)


@pytest.mark.parametrize("spec", ["data=1", "model=2"])
def test_eight_bits_are_the_weights_they_stand_for(speaker, paths, spec):
    qwix = pytest.importorskip("qwix")
    grid = mesh.make(spec)
    options = {"weights": str(speaker), "prompt": str(speaker / "prompt.txt")}
    tower = qwen2_vl.load(**options, pooling="last_prompt", int8=True)
    whole = qwen2_vl.load(**options, pooling="last_prompt")
    eight, full = (param_sharding.spread(each.params, grid) for each in (tower, whole))

    def is_eight(leaf):
        return isinstance(leaf, qwix.QArray)

    back = jax.tree.map(
        lambda leaf: qwix.dequantize(leaf) if is_eight(leaf) else leaf, eight, is_leaf=is_eight
    )
    kernel = eight["decoder"]["blocks"]["mlp"]["up"]["kernel"]
    assert (kernel.qvalue.dtype, kernel.scale.shape) == ("int8", (3, 1, 64))
    for given, ours in zip(jax.tree.leaves(full), jax.tree.leaves(back), strict=True):
        largest = np.abs(given).max()
        np.testing.assert_allclose(given, ours, atol=largest / 127 / 2 + 1e-6)

    def states(params):
        found = np.zeros((len(paths), 32))
        made = tower.batches(paths, 4)
        for at, values in tower.stream(made, tower.encode, params, mesh.rows(grid)):
            found[at] = values[0]
        return found

    np.testing.assert_allclose(states(eight), states(back), atol=1e-4)


def test_eight_bits_decode(speaker, paths):
    pytest.importorskip("qwix")
    tower = qwen2_vl.load(weights=str(speaker), prompt=str(speaker / "prompt.txt"), int8=True)
    assert len(ask(tower, paths[:3])) == 3
