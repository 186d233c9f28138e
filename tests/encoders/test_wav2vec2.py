"""Wav2Vec 2.0 and HuBERT against torch, climbing; and every file's vector is its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file
from scipy.io import wavfile
from support import towers
from support.towers import assert_states, save_random

from mmjax.core.errors import InputError
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.inputs import audio
from mmjax.encoders.towers import wav2vec2

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (16, 16, 24),
    "conv_kernel": (10, 8, 4),
    "conv_stride": (8, 5, 4),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}
LEAST = ((4 - 1) * 5 + 8 - 1) * 8 + 10  # samples of the first frame
LENGTHS = (3000, 1234, 700, LEAST)
VARIANTS = {  # what "base" and "large" checkpoints are, and what lies between
    "wav2vec2 base": ("Wav2Vec2", {}),
    "wav2vec2 large": (
        "Wav2Vec2",
        {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
    ),
    "hubert base": ("Hubert", {"num_conv_pos_embeddings": 7}),
    "hubert large": ("Hubert", {"feat_extract_norm": "layer", "do_stable_layer_norm": True}),
    "without projection norm": ("Hubert", {"feat_proj_layer_norm": False}),
    "group norm, stable": ("Wav2Vec2", {"do_stable_layer_norm": True}),
    "layer norm, not stable": ("Wav2Vec2", {"feat_extract_norm": "layer"}),
}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module", params=VARIANTS)
def tiny(request, torch, tmp_path_factory):
    return save(request.param, tmp_path_factory)


def save(variant, folders):
    """A random model of transformers and the folder it was saved in."""
    import transformers

    family, changes = VARIANTS[variant]
    config = getattr(transformers, f"{family}Config")(**{**TINY, **changes})
    model = getattr(transformers, f"{family}Model")(config)
    return model, save_random(model, folders.mktemp("tiny"))


@pytest.fixture(scope="module")
def base(torch, tmp_path_factory):
    return save("wav2vec2 base", tmp_path_factory)


@pytest.fixture(scope="module")
def large(torch, tmp_path_factory):
    return save("wav2vec2 large", tmp_path_factory)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Five WAV files of several rates, two channels and lengths from 0.2 to 1.4 seconds."""
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    paths = []
    for n, (seconds, rate) in enumerate(
        [(0.9, 16_000), (0.2, 44_100), (1.4, 8000), (0.4, 22_050), (0.3, 48_000)]
    ):
        time = np.arange(int(seconds * rate)) / rate
        left = np.sin(2 * np.pi * (200 + 90 * n) * time) + 0.2 * rng.normal(size=len(time))
        samples = np.stack([left, 0.5 * rng.normal(size=len(time))], axis=1)
        paths.append(str(folder / f"{n}.wav"))
        wavfile.write(paths[-1], rate, (0.3 * samples).astype(np.float32))
    return paths


def build(folder):
    config = wav2vec2.Config.read(hub.read_config(folder, wav2vec2.MODEL_TYPES))
    return hub.load_module(
        lambda: wav2vec2.Wav2Vec2(config, rngs=nnx.Rngs(0)), folder, wav2vec2.key_map()
    )


def run(folder, samples, lengths):
    """All outputs and the mask, as NumPy arrays."""
    graph, params = build(folder)
    program = jax.jit(lambda params, *arrays: hub.merge(graph, params)(*arrays))
    return jax.tree.map(np.asarray, program(params, samples, lengths))


def noise(lengths=LENGTHS, seed=0):
    """Samples [B, N], zeros from each length on, and the lengths."""
    samples = np.random.default_rng(seed).normal(size=(len(lengths), max(lengths)))
    there = np.arange(samples.shape[1]) < np.array(lengths)[:, None]
    return np.where(there, samples, 0).astype(np.float32), np.array(lengths, np.int32)


def alone(torch, model, samples, lengths):
    """What torch gives of each item by itself, without padding."""
    with torch.no_grad():
        return [
            model(torch.tensor(line[None, :length]), output_hidden_states=True)
            for line, length in zip(samples, lengths, strict=True)
        ]


# ---- climbing ----


@pytest.mark.slow
def test_time_norm_equals_group_norm_of_what_is_there(torch):
    x = np.random.default_rng(0).normal(3, 2, (2, 50, 6)).astype(np.float32)
    norm = torch.nn.GroupNorm(6, 6)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    ours = wav2vec2.TimeNorm(6, rngs=nnx.Rngs(0))
    ours.scale[...], ours.bias[...] = norm.weight.detach().numpy(), norm.bias.detach().numpy()
    there = np.arange(50) < np.array([[50], [31]])
    found = ours(x, there)
    for line, got, count in zip(x, found, (50, 31), strict=True):
        with torch.no_grad():
            wanted = norm(torch.tensor(line[None, :count]).transpose(1, 2)).transpose(1, 2)[0]
        np.testing.assert_allclose(got[:count], wanted.numpy(), atol=1e-5, rtol=0)
    assert np.isfinite(ours(x, np.zeros_like(there))).all()  # rows that are padding altogether


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "large"])
def test_places_and_one_block_equal_torch_on_their_own(torch, request, name):
    model, folder = request.getfixturevalue(name)
    module = hub.merge(*build(folder))
    x = np.random.default_rng(1).normal(size=(2, 19, 32)).astype(np.float32)
    with torch.no_grad():
        places = model.encoder.pos_conv_embed(torch.tensor(x))
        block = model.encoder.layers[1](torch.tensor(x))
        block = block[0] if isinstance(block, tuple) else block
    np.testing.assert_allclose(module.places(x), places.numpy(), atol=1e-5, rtol=0)
    np.testing.assert_allclose(module.blocks[1](x), block.numpy(), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_every_layer_of_a_batch_equals_torch_on_each_item_alone(torch, tiny):
    model, folder = tiny
    samples, lengths = noise()
    samples, lengths = np.pad(samples, ((0, 1), (0, 200))), np.append(lengths, np.int32(0))
    found, there = run(folder, samples, lengths)
    assert all(np.isfinite(value).all() for value in found.values())
    for n, wanted in enumerate(alone(torch, model, samples[:4], lengths[:4])):
        count = wanted.last_hidden_state.shape[1]
        assert there[n].sum() == count
        here = {name: value[n : n + 1, :count] for name, value in found.items()}
        assert_states(here, wanted.hidden_states)
        if "extract_features" in wanted:
            np.testing.assert_allclose(
                here["extract_features"], wanted.extract_features.numpy(), atol=1e-5, rtol=0
            )
        np.testing.assert_allclose(
            here["last_hidden_state"], wanted.last_hidden_state.numpy(), atol=1e-5, rtol=0
        )
    assert not there[4].any()


@pytest.mark.slow
def test_a_padded_batch_equals_torch_with_its_mask(torch, large):
    """Large checkpoints pass a mask in transformers: there the same batch can be compared."""
    model, folder = large
    samples, lengths = noise()
    mask = np.arange(samples.shape[1]) < lengths[:, None]
    with torch.no_grad():
        wanted = model(
            torch.tensor(samples),
            attention_mask=torch.tensor(mask.astype(np.int64)),
            output_hidden_states=True,
        )
    found, there = run(folder, samples, lengths)
    assert_states(found, wanted.hidden_states, there)


# ---- files to vectors ----


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "large"])
def test_files_equal_torch_after_its_feature_extractor(torch, request, name, clips):
    from transformers import Wav2Vec2FeatureExtractor

    model, folder = request.getfixturevalue(name)
    extractor = Wav2Vec2FeatureExtractor()
    wanted = []
    for path in clips:
        values = extractor(
            audio.read(path, 16_000), sampling_rate=16_000, return_tensors="pt"
        ).input_values
        with torch.no_grad():
            wanted.append(model(values).last_hidden_state.mean(1)[0].numpy())
    tower = wav2vec2.load(weights=str(folder))
    assert tower.modality == "audio"
    assert tower.layers == {"last_hidden_state:mean": 32}
    (found,) = towers.encode(tower, clips, size=4).values()
    np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_batches_and_devices_change_nothing(base, clips):
    tower = wav2vec2.load(weights=str(base[1]))
    (one,) = towers.encode(tower, clips, size=8).values()
    (single,) = towers.encode(tower, clips, size=1).values()
    np.testing.assert_allclose(single, one, atol=2e-6, rtol=0)
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    (spread,) = towers.encode(tower, clips, size=8, rows=NamedSharding(mesh, P("data"))).values()
    np.testing.assert_allclose(spread, one, atol=2e-6, rtol=0)


@pytest.mark.slow
def test_layers_by_name_and_by_the_numbers_that_ducho_uses(torch, large, clips):
    model, folder = large
    layers = [0, 1, -1, "last_hidden_state:max", "extract_features"]
    tower = wav2vec2.load(weights=str(folder), layers=layers)
    names = [f"hidden_states.{n}:mean" for n in (0, 1, 2)]
    assert [*tower.layers] == [*names, "last_hidden_state:max", "extract_features:mean"]
    assert [*tower.layers.values()] == [32, 32, 32, 32, 24]
    samples = audio.normalize(audio.read(clips[0], 16_000))
    (wanted,) = alone(torch, model, samples[None], [len(samples)])
    found = towers.encode(tower, clips[:1], size=1)
    for name, number in zip(names, (0, 1, 2), strict=True):
        state = wanted.hidden_states[number].numpy().mean(axis=1)
        np.testing.assert_allclose(found[name], state, atol=1e-4, rtol=0)
    peak = wanted.last_hidden_state.numpy().max(axis=1)
    np.testing.assert_allclose(found["last_hidden_state:max"], peak, atol=1e-4, rtol=0)


def test_options_reach_the_batches(base, clips, tmp_path):
    options = audio.AudioOptions(max_seconds=0.5, normalize_samples=False)
    tower = wav2vec2.load(weights=str(base[1]), options=options)
    assert tower.about["preprocessing"] == "mono, 16000 Hz, not normalized, cut at 0.5 s"
    (batch,) = tower.batches(clips, 8)
    assert batch.arrays[0].shape == (8, 8000)
    assert batch.cut == 2
    wavfile.write(tmp_path / "short.wav", 16_000, np.zeros(LEAST - 1, np.float32))
    wavfile.write(tmp_path / "least.wav", 16_000, np.zeros(LEAST, np.float32))
    (batch,) = tower.batches([str(tmp_path / "short.wav"), str(tmp_path / "least.wav")], 2)
    assert batch.rows.tolist() == [1]
    assert f"a frame takes {LEAST}" in batch.failed[0]
    with pytest.raises(InputError, match=r"max_seconds 0\.001 is less than one frame takes"):
        wav2vec2.load(weights=str(base[1]), options=audio.AudioOptions(max_seconds=0.001))


@pytest.mark.slow
def test_bfloat16_stays_near(base, clips):
    whole = wav2vec2.load(weights=str(base[1]))
    half = wav2vec2.load(weights=str(base[1]), dtype="bfloat16")
    (batch,) = half.batches(clips, 8)
    assert half.encode(half.params, *batch.arrays)[0].dtype == jnp.bfloat16
    (wanted,), (found,) = (towers.encode(tower, clips, 8).values() for tower in (whole, half))
    lengths = np.linalg.norm(wanted, axis=1) * np.linalg.norm(found, axis=1)
    agreement = (wanted * found).sum(axis=1) / lengths
    assert (agreement > 0.999).all()


# ---- checkpoints ----


@pytest.mark.parametrize(
    "name",
    [
        "Wav2Vec2ForPreTraining",
        "Wav2Vec2ForCTC",
        "Wav2Vec2ForSequenceClassification",
        "HubertForCTC",
        "HubertForSequenceClassification",
    ],
)
def test_task_models_and_the_old_weight_norm_fill_the_same_parameters(torch, tmp_path, name):
    import transformers as hf

    heads = {"proj_codevector_dim": 8, "codevector_dim": 8, "classifier_proj_size": 8}
    config = getattr(hf, name.split("For")[0] + "Config")(
        **TINY, **heads, vocab_size=11, use_weighted_layer_sum="Sequence" in name
    )
    model = getattr(hf, name)(config)
    folder = save_random(model, tmp_path / "task")
    model.base_model.save_pretrained(tmp_path / "alone")
    wanted = build(tmp_path / "alone")[1]
    jax.tree.map(np.testing.assert_array_equal, build(folder)[1], wanted)

    norm, tensors = "parametrizations.weight.original", load_file(folder / "model.safetensors")
    old = {
        key.replace(f"{norm}0", "weight_g").replace(f"{norm}1", "weight_v"): value
        for key, value in tensors.items()
    }
    assert old.keys() != tensors.keys()
    save_file(old, folder / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, build(folder)[1], wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feat_extract_norm": "batch"}, "feat_extract_norm 'batch' is not supported"),
        ({"conv_pos_batch_norm": True}, "conv_pos_batch_norm True is not supported"),
        ({"add_adapter": True}, "add_adapter True is not supported"),
        ({"adapter_attn_dim": 16}, "adapter_attn_dim 16 is not supported"),
        ({"feat_extract_activation": "swoosh"}, "feat_extract_activation 'swoosh' is none of"),
        ({"hidden_act": "swoosh"}, "hidden_act 'swoosh' is none of"),
    ],
)
def test_variants_that_would_compute_something_else_are_refused(change, message):
    from transformers import Wav2Vec2Config

    config = Wav2Vec2Config(**TINY).to_dict()
    assert wav2vec2.Config.read(config).least() == LEAST
    with pytest.raises(InputError, match=message):
        wav2vec2.Config.read({**config, **change})
    del config["conv_stride"]
    with pytest.raises(InputError, match="lacks conv_stride"):
        wav2vec2.Config.read(config)
