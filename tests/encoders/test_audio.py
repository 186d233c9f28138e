"""Audio files of every kind to samples: values, rates, batches, and what is said of faulty ones."""

import json
import math
import wave

import numpy as np
import pytest
from scipy.io import wavfile

from mmjax.core.errors import InputError
from mmjax.encoders.inputs import audio
from mmjax.encoders.inputs.audio import AudioOptions, Recipe


def write(path, samples, rate=16_000):
    """Float samples [n] or [n, C] as a float WAV."""
    wavfile.write(path, rate, np.asarray(samples, np.float32))
    return str(path)


def tone(hertz, rate, seconds):
    return np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate).astype(np.float32)


@pytest.fixture(params=["soundfile", "without soundfile"])
def reader(request, monkeypatch):
    """Both ways to read a WAV."""
    if request.param == "soundfile":
        pytest.importorskip("soundfile")
    else:
        monkeypatch.setattr(audio, "soundfile", None)


# ---- reading ----


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_pcm_of_every_width(tmp_path, reader, width):
    top = 1 << 8 * width - 1
    values = np.array([[0, 0], [top - 1, -top], [top // 2, top // 4], [-1, 1]])
    codes = values + top if width == 1 else values  # 8 bits are unsigned
    with wave.open(str(tmp_path / "a.wav"), "wb") as out:
        out.setnchannels(2)
        out.setsampwidth(width)
        out.setframerate(16_000)
        little = np.asarray(codes, "<i8").reshape(-1, 1).view(np.uint8)[:, :width]
        out.writeframes(little.tobytes())
    wanted = (values / top).astype(np.float32).mean(axis=1)
    np.testing.assert_array_equal(audio.read(str(tmp_path / "a.wav"), 16_000), wanted)
    assert audio.duration(str(tmp_path / "a.wav")) == 4 / 16_000


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float_wav(tmp_path, reader, dtype):
    values = np.random.default_rng(0).normal(size=30).astype(dtype)
    wavfile.write(tmp_path / "a.wav", 16_000, values)
    found = audio.read(str(tmp_path / "a.wav"), 16_000)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values.astype(np.float32))


def test_other_formats(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    clip = 0.5 * tone(440, 16_000, 1)
    for suffix, tolerance in (("flac", 2**-15), ("ogg", 0.05), ("mp3", 0.05)):
        path = str(tmp_path / f"a.{suffix}")
        soundfile.write(path, clip, 16_000)
        found = audio.read(path, 16_000)
        assert len(found) == 16_000
        np.testing.assert_allclose(found[2000:-2000], clip[2000:-2000], atol=tolerance)


def test_other_formats_need_soundfile(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "soundfile", None)
    (tmp_path / "a.flac").write_bytes(b"fLaC" + bytes(100))
    assert audio.duration(str(tmp_path / "a.flac")) == 0
    why = audio.read(str(tmp_path / "a.flac"), 16_000)
    assert why.endswith("; the package soundfile reads more formats")
    assert "\n" not in why


def test_channels_are_averaged_and_a_file_is_cut_before_its_rate_changes(tmp_path, reader):
    left, right = tone(300, 8000, 2), tone(500, 8000, 2)
    path = write(tmp_path / "a.wav", np.stack([left, right], axis=1), 8000)
    wanted = audio.resample((left + right)[:8000] / 2, 8000, 16_000)
    np.testing.assert_allclose(audio.read(path, 16_000, seconds=1), wanted, atol=1e-6)


def test_what_cannot_be_read(tmp_path, reader):
    folder, gone = str(tmp_path), str(tmp_path / "gone.wav")
    assert audio.read(folder, 16_000) == audio.read(gone, 16_000) == "no such file"
    assert audio.read(write(tmp_path / "a.wav", []), 16_000) == "no samples"
    assert audio.read(write(tmp_path / "a.wav", [0, np.nan]), 16_000) == (
        "samples that are not numbers"
    )
    assert audio.read(write(tmp_path / "a.wav", [0.5], 7), 16_000) == "a rate of 7 samples a second"
    for content in (b"", b"RIFF", b"no audio at all" * 9):
        (tmp_path / "b.wav").write_bytes(content)
        assert audio.duration(str(tmp_path / "b.wav")) == 0
        why = audio.read(str(tmp_path / "b.wav"), 16_000)
        assert isinstance(why, str)
        assert why


# ---- rates ----


def directly(samples, old, new):
    """The interpolation formula as it is written down, one output after the other."""
    cutoff, out = 0.99 * min(old, new), []
    for j in range(math.ceil(len(samples) * new / old)):
        total = 0.0
        for i, sample in enumerate(samples):
            t = cutoff * (j / new - i / old)
            if abs(t) < 6:
                sinc = math.sin(math.pi * t) / (math.pi * t) if t else 1.0
                total += sample * sinc * math.cos(math.pi * t / 12) ** 2 * cutoff / old
        out.append(total)
    return np.array(out)


@pytest.mark.parametrize(
    ("old", "new"),
    [(44_100, 16_000), (48_000, 16_000), (8000, 16_000), (16_000, 44_100), (16_001, 16_000)],
)
def test_resampling_equals_its_formula(old, new):
    for count in (1, 2, 257):
        samples = np.random.default_rng(count).normal(size=count).astype(np.float32)
        found = audio.resample(samples, old, new)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, directly(samples, old, new), atol=1e-6, rtol=0)


@pytest.mark.parametrize("old", [8000, 22_050, 44_100, 48_000, 96_000])
def test_resampling_equals_torchaudio(old):
    torchaudio = pytest.importorskip("torchaudio")
    torch = pytest.importorskip("torch")
    samples = np.random.default_rng(0).normal(size=4001)
    # In float32 torchaudio's kernel is rounded to some 1e-4.
    wanted = torchaudio.functional.resample(torch.tensor(samples), old, 16_000)
    np.testing.assert_allclose(audio.resample(samples, old, 16_000), wanted, atol=1e-6, rtol=0)


def test_a_tone_stays_and_what_the_new_rate_cannot_hold_goes():
    low, high = tone(440, 44_100, 0.5), tone(12_000, 44_100, 0.5)
    found = audio.resample(low + high, 44_100, 16_000)
    np.testing.assert_allclose(found[500:-500], tone(440, 16_000, 0.5)[500:-500], atol=0.01)
    unchanged = audio.resample(low, 16_000, 16_000)
    np.testing.assert_array_equal(unchanged, low)


# ---- batches ----


@pytest.fixture
def clips(tmp_path):
    """A dozen files of 0.1 to 5 seconds, among them a broken, a missing and an empty one."""
    rng = np.random.default_rng(0)
    seconds = [0.1, 5, 0.7, 1, 1.1, 0, 3, 0.2, 2.5, 4, 2]
    paths = [
        write(tmp_path / f"{n}.wav", rng.normal(0.3, 0.2, int(16_000 * length)))
        for n, length in enumerate(seconds)
    ]
    (tmp_path / "broken.wav").write_bytes(b"RIFF no")
    return [*paths, str(tmp_path / "broken.wav"), str(tmp_path / "missing.wav")]


def test_files_of_like_length_share_a_few_shapes(clips):
    batches = list(audio.sample_batches(clips, 4, options=AudioOptions(max_seconds=2.75)))
    assert sorted(np.concatenate([batch.rows for batch in batches])) == [*range(5), *range(6, 11)]
    failed = {row: why for batch in batches for row, why in batch.failed.items()}
    assert failed.keys() == {5, 11, 12}
    assert failed[5] == "no samples"
    assert failed[12] == "no such file"
    for batch in batches:
        samples, lengths = batch.arrays
        assert samples.shape in {(4, 44_000), (4, 32_000), (4, 16_000)}
        assert (samples.dtype, lengths.dtype) == (np.float32, np.int32)
        for row, line, length in zip(batch.rows, samples, lengths, strict=False):
            wanted = audio.normalize(audio.read(clips[row], 16_000, 2.75))
            np.testing.assert_array_equal(line[:length], wanted)
            assert not line[length:].any()
        assert not samples[len(batch.rows) :].any()
        assert not lengths[len(batch.rows) :].any()
    longest = [batch.arrays[1].max() for batch in batches]
    assert longest == sorted(longest, reverse=True)
    assert sum(batch.cut for batch in batches) == 3  # of 5, 4 and 3 seconds


def test_one_batch_is_read_at_a_time(clips, monkeypatch):
    read, opened = audio.read, []
    monkeypatch.setattr(audio, "read", lambda *args: opened.append(args[0]) or read(*args))
    batches = audio.sample_batches(clips, 3)
    next(batches)
    assert sorted(opened) == sorted(clips[row] for row in (1, 9, 6))


def test_a_batch_of_failures_has_no_rows(clips):
    (batch,) = audio.sample_batches(clips[-2:], 2)
    assert len(batch.rows) == 0
    assert batch.failed.keys() == {0, 1}
    assert batch.arrays[0].shape == (2, 16_000)


def test_a_file_shorter_than_a_frame_is_a_failure(tmp_path):
    path = write(tmp_path / "a.wav", np.zeros(399))
    (batch,) = audio.sample_batches([path], 1, least=400)
    assert batch.failed == {0: "399 samples at 16000 Hz, but a frame takes 400"}


def test_samples_equal_those_of_the_feature_extractor(clips):
    from transformers import Wav2Vec2FeatureExtractor

    for normalized in (True, False):
        (batch,) = audio.sample_batches(clips[:5], 5, Recipe(16_000, normalized))
        extractor = Wav2Vec2FeatureExtractor(do_normalize=normalized, return_attention_mask=True)
        wanted = extractor(
            [audio.read(clips[row], 16_000) for row in batch.rows],
            sampling_rate=16_000,
            padding="max_length",
            max_length=batch.arrays[0].shape[1],
            return_tensors="np",
        )
        np.testing.assert_allclose(batch.arrays[0], wanted["input_values"], atol=1e-6, rtol=0)
        np.testing.assert_array_equal(batch.arrays[1], wanted["attention_mask"].sum(axis=1))


# ---- what a checkpoint and a user say ----


def test_recipes(tmp_path):
    assert audio.read_recipe(tmp_path) == Recipe(16_000, True)
    given = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 8000}
    nested = tmp_path / "processor_config.json"
    nested.write_text(json.dumps({"feature_extractor": {**given, "do_normalize": False}}))
    assert audio.read_recipe(tmp_path) == Recipe(8000, False)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(given))
    assert audio.read_recipe(tmp_path) == Recipe(8000, True)
    path.write_text(json.dumps({"feature_extractor_type": "WhisperFeatureExtractor"}))
    with pytest.raises(InputError, match="is of a WhisperFeatureExtractor that does more"):
        audio.read_recipe(tmp_path)
    path.write_text("[")
    with pytest.raises(InputError, match=r"preprocessor_config\.json cannot be read"):
        audio.read_recipe(tmp_path)


@pytest.mark.parametrize("seconds", [0, -1, math.inf, math.nan])
def test_max_seconds_is_positive(seconds):
    with pytest.raises(InputError, match="max_seconds must be positive"):
        AudioOptions(max_seconds=seconds)
