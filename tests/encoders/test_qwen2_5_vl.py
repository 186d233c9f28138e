"""Qwen2.5-VL against torch: the vision tower with its windows, the whole model, decoding."""

from functools import partial

import jax
import numpy as np
import pytest
from support import qwen

from mmjax.core.errors import InputError
from mmjax.encoders import layers
from mmjax.encoders.towers import qwen2_5_vl
from mmjax.encoders.vlm import qwen_vl, rotary
from mmjax.encoders.vlm.qwen_vl import Patches

VISION = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 32,
    "window_size": 56,  # four patches of 14
    "fullatt_block_indexes": [1],
}
ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": qwen.SECTIONS}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def tiny(torch, tmp_path_factory):
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config={**qwen.TEXT, "rope_parameters": ROPE}, vision_config=VISION, **qwen.IDS
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    return qwen.tiny(model, tmp_path_factory.mktemp("tiny"), qwen2_5_vl.KIND)


@pytest.fixture(scope="module")
def told(tiny):
    return qwen.told(tiny)


def test_patch_embedding_equals_torch(told):
    qwen.check_patch_embed(told)


@pytest.mark.slow
def test_vision_blocks_equal_torch(told):
    """Two images one behind the other, as torch has them: sorted by window already."""
    vision = told.model.vision
    patches, window, _ = qwen2_5_vl.by_window(told.patches, vision.side)
    assert len(np.unique(window)) == 7
    mask, by = qwen_vl.same_image(patches), rotary.turn(vision.turns, patches.at)

    @partial(jax.jit, static_argnums=2)
    def run(block, x, full):
        def look(q, k, v):
            if full:
                return layers.attend(q, k, v, mask)
            return qwen2_5_vl.within(q, k, v, window, vision.side**2)

        return block(x, by, look)

    for n, block in enumerate(layers.unstack(vision.blocks, VISION["depth"])):
        wanted = told.answer(f"model.visual.blocks.{n}")
        given = told.given(f"model.visual.blocks.{n}")
        qwen.near(run(block, given, n == 1), wanted, 1e-5)


@pytest.mark.slow
def test_merger_equals_torch(told):
    got = told.model.vision.merger(told.given("model.visual.merger"))
    qwen.near(got, told.answer("model.visual.merger"), 1e-5)


def test_rotary_positions_equal_torch(told):
    qwen.check_rotary(told)


def test_decoder_blocks_equal_torch(told):
    qwen.check_decoder_blocks(told)


@pytest.mark.slow
@pytest.mark.parametrize(("side", "count"), [(8, 300), (4, 12)])
def test_windows_equal_a_mask(side, count):
    """Attention in blocks of a sorted row equals attention to whatever is in the same window."""
    rng = np.random.default_rng(side)
    image, at = zip(*(patches(rng, count) for _ in range(3)), strict=True)
    image, at = np.stack(image), np.stack(at)
    q, k, v = rng.normal(size=(3, 3, count, 2, 4)).astype(np.float32)
    numbers = np.broadcast_to(np.arange(count)[None, :, None], (3, count, 1))

    @jax.jit
    def run(image, at, q, k, v):
        found, window, order = qwen2_5_vl.by_window(Patches(numbers, image, at, at), side)
        places = found.pixels[..., 0]
        q, k, v = (jax.vmap(lambda x, places: x[places])(x, places) for x in (q, k, v))
        return qwen2_5_vl.within(q, k, v, window, side**2), places, order

    got, places, order = run(image, at, q, k, v)
    np.testing.assert_array_equal(places[:, ::4], 4 * order)
    same = [one[:, :, None] == one[:, None] for one in (image, *(at // side).swapaxes(0, 1))]
    wanted = jax.jit(layers.attend)(q, k, v, np.logical_and.reduce(same))
    wanted = np.take_along_axis(np.asarray(wanted), np.asarray(places)[:, :, None, None], axis=1)
    qwen.near(got, wanted, 1e-6)


def patches(rng, count):
    """Images of random shapes, squares in their order, and padding: image [P] and at [2, P]."""
    image, at = [], []
    while (left := count - sum(map(len, image))) >= 4:
        rows, columns = 2 * rng.integers(1, 9, 2)
        if rows * columns > left:
            rows, columns = 2, 2
        at.append(qwen.squares(rows, columns))
        image.append(np.full(rows * columns, len(at)))
    pads = np.zeros(left, int)
    return np.concatenate([*image, pads]), np.concatenate([*at, [pads, pads]], axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("side", ["left", "right"])
def test_every_layer_and_logits_equal_torch(tiny, side):
    qwen.check_model(tiny, side)


@pytest.mark.slow
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prefix_and_the_rest_equal_the_whole(tiny, side):
    qwen.check_prefix(tiny, side)


@pytest.mark.slow
def test_steps_equal_the_whole(tiny):
    qwen.check_steps(tiny)


@pytest.mark.slow
def test_bfloat16_stays_near(tiny):
    qwen.check_bfloat16(tiny)


def test_names_of_every_age_are_read(tiny, tmp_path):
    qwen.check_names(tiny, tmp_path)


def test_what_config_json_omits_is_what_transformers_takes():
    from transformers import Qwen2_5_VLConfig

    qwen.check_defaults(qwen2_5_vl.KIND, Qwen2_5_VLConfig())


def test_a_window_smaller_than_a_token_is_refused(tmp_path):
    about = {"vision_config": {**VISION, "window_size": 27}}
    with pytest.raises(InputError, match="windows of 27 pixels are smaller than a token"):
        qwen_vl.vision_config(tmp_path, qwen2_5_vl.VisionConfig, about)
