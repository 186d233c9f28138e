"""Qwen3-VL against torch: learned positions, DeepStack, the whole model, decoding."""

import jax
import numpy as np
import pytest
from support import qwen

from mmjax.core.errors import InputError
from mmjax.encoders import layers
from mmjax.encoders.towers import qwen3_vl
from mmjax.encoders.vlm import qwen_vl, rotary

VISION = {
    "depth": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 16,
    "num_position_embeddings": 36,
    "deepstack_visual_indexes": [0, 2],
}
ROPE = {
    "rope_type": "default",
    "rope_theta": 10_000.0,
    "mrope_section": qwen.SECTIONS,
    "mrope_interleaved": True,
}


def torch_model(**changes):
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    text = {**qwen.TEXT, "head_dim": 8, "rope_parameters": ROPE, **changes}
    config = Qwen3VLConfig(text_config=text, vision_config=VISION, **qwen.IDS)
    return Qwen3VLForConditionalGeneration(config)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def tiny(torch, tmp_path_factory):
    model = torch_model()
    return qwen.tiny(model, tmp_path_factory.mktemp("tiny"), qwen3_vl.KIND, patch=16)


@pytest.fixture(scope="module")
def told(tiny):
    return qwen.told(tiny)


@pytest.mark.slow
def test_pixels_equal_transformers(tiny):
    qwen.check_pixels(tiny)


def test_patch_embedding_equals_torch(told):
    qwen.check_patch_embed(told)


def test_rotary_positions_equal_torch(told):
    qwen.check_rotary(told)


@pytest.mark.slow
@pytest.mark.parametrize("side", [6, 48])
def test_positions_are_interpolated_as_torch_does(torch, side):
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights as told

    grids = [(2, 2), (6, 14), (48, 48), (50, 10), (96, 2)]
    table = np.random.default_rng(0).normal(size=(side * side, 8)).astype(np.float32)
    indices, weights = told(
        torch.tensor([[1, *grid] for grid in grids]), side, align_corners=True, spatial_merge_size=2
    )
    wanted = (torch.tensor(table)[indices] * weights[:, :, None]).sum(1)
    at = np.concatenate([qwen.squares(*grid) for grid in grids], axis=1)
    grid = np.repeat(np.array(grids).T, [rows * columns for rows, columns in grids], axis=1)
    got = qwen3_vl.interpolate(table, qwen_vl.Patches(None, None, at[None], grid[None]))
    qwen.near(got[0], wanted, 1e-5)


def test_vision_blocks_equal_torch(told):
    vision = told.model.vision
    mask, by = qwen_vl.same_image(told.patches), rotary.turn(vision.turns, told.patches.at)
    run = jax.jit(lambda block, x: block(x, mask, by=by))
    for n, block in enumerate(layers.unstack(vision.blocks, VISION["depth"])):
        got = run(block, told.given(f"model.visual.blocks.{n}"))
        qwen.near(got, told.answer(f"model.visual.blocks.{n}"), 1e-5)


def test_mergers_equal_torch(told):
    vision = told.model.vision
    mergers = layers.unstack(vision.mergers, 2)
    ours = {"merger": vision.merger}
    ours |= {f"deepstack_merger_list.{n}": merger for n, merger in enumerate(mergers)}
    for name, merger in ours.items():
        got = merger(told.given(f"model.visual.{name}"))
        qwen.near(got, told.answer(f"model.visual.{name}"), 1e-5)


@pytest.mark.slow
def test_what_goes_deeper_equals_torch(told):
    tokens, added = jax.jit(lambda model, patches: model.look(patches))(told.model, told.patches)
    qwen.near(tokens, told.answer("model.visual.merger"), 1e-5)
    for n, got in enumerate(added):
        qwen.near(got, told.answer(f"model.visual.deepstack_merger_list.{n}"), 1e-5)


def test_decoder_blocks_equal_torch(told):
    qwen.check_decoder_blocks(told)


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


@pytest.mark.slow
def test_attention_may_have_biases(torch, tmp_path):
    tiny = qwen.tiny(torch_model(attention_bias=True), tmp_path, qwen3_vl.KIND, patch=16)
    assert tiny.params["decoder"]["blocks"]["attention"]["out"]["bias"].any()
    qwen.check_decoder_blocks(qwen.told(tiny))


def test_names_of_every_age_are_read(tiny, tmp_path):
    qwen.check_names(tiny, tmp_path)


def test_positions_of_tokens_equal_torch(tiny):
    qwen.check_positions(tiny)


def test_what_config_json_omits_is_what_transformers_takes():
    from transformers import Qwen3VLConfig

    qwen.check_defaults(qwen3_vl.KIND, Qwen3VLConfig())


@pytest.mark.parametrize("deep", [[], [2, 0], [1, 1], [1, 4]])
def test_deeper_layers_are_in_order(tmp_path, deep):
    about = {"vision_config": {**VISION, "deepstack_visual_indexes": deep}}
    with pytest.raises(InputError, match="are not layers of 4 in their order"):
        qwen_vl.vision_config(tmp_path, qwen3_vl.VisionConfig, about)
