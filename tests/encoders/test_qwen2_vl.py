"""Qwen2-VL against torch: every part, the whole model, decoding; and what checkpoints look like."""

import copy
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from support import qwen

from mmjax.core.errors import InputError
from mmjax.encoders import layers
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.checkpoints.weights import Stored
from mmjax.encoders.towers import qwen2_vl
from mmjax.encoders.vlm import qwen_vl, rotary

VISION = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": qwen.SECTIONS}


def torch_model(**changes):
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    text = {**qwen.TEXT, "rope_parameters": ROPE}
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(text_config=text, vision_config=VISION, **qwen.IDS, **changes)
    )


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def tiny(torch, tmp_path_factory):
    return qwen.tiny(torch_model(), tmp_path_factory.mktemp("tiny"), qwen2_vl.KIND)


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


def test_vision_blocks_equal_torch(told):
    vision = told.model.vision
    mask, by = qwen_vl.same_image(told.patches), rotary.turn(vision.turns, told.patches.at)
    run = jax.jit(lambda block, x: block(x, mask, by=by))
    for n, block in enumerate(layers.unstack(vision.blocks, VISION["depth"])):
        got = run(block, told.given(f"model.visual.blocks.{n}"))
        qwen.near(got, told.answer(f"model.visual.blocks.{n}"), 1e-5)


def test_merger_equals_torch(told):
    got = told.model.vision.merger(told.given("model.visual.merger"))
    qwen.near(got, told.answer("model.visual.merger"), 1e-5)


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


def test_steps_equal_the_whole(tiny):
    qwen.check_steps(tiny)


@pytest.mark.slow
def test_bfloat16_stays_near(tiny):
    qwen.check_bfloat16(tiny)


def test_positions_of_tokens_equal_torch(tiny):
    qwen.check_positions(tiny)


@settings(max_examples=300, deadline=None)
@given(
    st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    st.sampled_from([28, 32]),
    st.integers(1, 200),
    st.integers(0, 2000),
)
@example((10, 1000), 28, 4, 1280)
@example((1, 200), 28, 4, 1280)
@example((201, 1), 28, 4, 1280)
@example((1, 1), 32, 64, 0)
def test_sizes_equal_transformers(sides, factor, least, more):
    smart_resize = pytest.importorskip(
        "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl"
    ).smart_resize
    bounds = least * factor**2, (least + more) * factor**2
    try:
        wanted = smart_resize(*sides, factor, *bounds)
    except ValueError:
        with pytest.raises(ValueError, match="is over 200 times the other"):
            qwen_vl.smart_size(*sides, factor, *bounds)
    else:
        assert qwen_vl.smart_size(*sides, factor, *bounds) == wanted


def test_names_of_every_age_are_read(tiny, tmp_path):
    qwen.check_names(tiny, tmp_path)


def test_shards_and_bfloat16_are_read_by_slices(torch, tiny, tmp_path):
    halves = copy.deepcopy(tiny.torch).to(torch.bfloat16)
    halves.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    graph, stored = qwen.load(tmp_path, qwen2_vl.KIND, dtype=ml_dtypes.bfloat16, lazy=True)
    assert graph == tiny.graph
    for leaf, whole in zip(*map(jax.tree.leaves, (stored, tiny.params)), strict=True):
        assert isinstance(leaf, Stored)
        assert leaf.shape == whole.shape
        wanted = whole.astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(np.asarray(leaf), wanted)
        for index in (
            tuple(slice(size // 2, None) for size in leaf.shape),
            (*(slice(None) for _ in leaf.shape[1:]), slice(0, 3)),
            (0, *(slice(None, None, 2) for _ in leaf.shape[1:])),
        ):
            assert leaf[index].dtype == ml_dtypes.bfloat16
            np.testing.assert_array_equal(leaf[index], wanted[index])


def test_a_tied_head_is_the_embedding(torch, tmp_path):
    model = torch_model(tie_word_embeddings=True)
    tiny = qwen.tiny(model, tmp_path, qwen2_vl.KIND)
    states = np.random.default_rng(0).normal(size=(2, 3, 32)).astype(np.float32)
    got = hub.merge(tiny.graph, tiny.params).decoder.logits(states)
    qwen.near(got, model.lm_head(torch.tensor(states)), 1e-5)


def test_what_config_json_omits_is_what_transformers_takes():
    from transformers import Qwen2VLConfig

    qwen.check_defaults(qwen2_vl.KIND, Qwen2VLConfig())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_sliding_window": True}, "asks for a sliding window"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "asks for yarn rotary positions"),
        ({"rope_scaling": {"mrope_section": [1, 1, 1]}}, r"mrope_section \[1, 1, 1\] for heads 8"),
        ({"num_hidden_layers": None}, "says no num_hidden_layers of its"),
        ({"vision_config": {**VISION, "temporal_patch_size": 1}}, "temporal_patch_size 1; only 2"),
    ],
)
def test_what_cannot_be_run_is_refused(tmp_path, changes, message):
    scaling = {"type": "mrope", "mrope_section": qwen.SECTIONS}
    about = {"model_type": "qwen2_vl", "vision_config": VISION, **qwen.TEXT}
    about |= {"rope_scaling": scaling, **changes}
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match=message):
        qwen.load(tmp_path, qwen2_vl.KIND)


def test_a_missing_tensor_is_named(tiny, tmp_path):
    tensors = load_file(tiny.folder / "model.safetensors")
    del tensors["visual.blocks.1.mlp.fc1.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copy(tiny.folder / "config.json", tmp_path)
    with pytest.raises(InputError, match=r"nothing fills vision\.blocks\.mlp\.up\.bias of layer 1"):
        qwen.load(tmp_path, qwen2_vl.KIND)
