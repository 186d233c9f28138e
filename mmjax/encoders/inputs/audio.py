"""Read audio files into batches of mono samples.

Samples are at the model's rate, and files of similar length share a batch. With the package
soundfile every format that libsndfile knows is read (WAV, FLAC, OGG, MP3, …), without it WAV only.
Rates are changed by band-limited interpolation, as torchaudio does it.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from scipy.io import wavfile
from scipy.signal import upfirdn

from mmjax.core import storage
from mmjax.core.errors import InputError
from mmjax.encoders import outputs
from mmjax.encoders.core import Batch, Tower, pad_to

try:
    import soundfile
except (ImportError, OSError):  # the package, or its C library, is missing
    soundfile = None

ZEROS, ROLLOFF = 6, 0.99  # zero crossings of the kernel on each side; cutoff / Nyquist frequency
RATES = range(1_000, 1_000_001)  # samples a second; a header beyond them counts as damaged
# Seconds to which a batch is padded. A program is compiled for each one in use.
BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
DAMAGE = (OSError, ValueError, RuntimeError, EOFError, TypeError, IndexError, struct.error)


@dataclass(frozen=True)
class AudioOptions:
    """Audio settings of the user; None keeps the checkpoint's value."""

    max_seconds: float = 30.0  # a longer file is cut
    normalize_samples: bool | None = None  # per file, to zero mean and unit variance
    workers: int | None = None  # threads that decode; as many as cores unless given

    def __post_init__(self) -> None:
        if not 0 < self.max_seconds < math.inf:
            raise InputError(f"max_seconds must be positive, not {self.max_seconds}")


class Recipe(NamedTuple):
    """Rate and normalisation of a checkpoint's feature extractor.

    `rate` is in samples a second.
    """

    rate: int = 16_000
    normalize: bool = True


def read_recipe(folder: Path) -> Recipe:
    """Read the recipe from preprocessor_config.json or processor_config.json.

    Without either file it is the default recipe.

    Raises:
      InputError: damaged, or of an extractor that feeds other than raw samples.
    """
    path = folder / "preprocessor_config.json"
    nested = folder / "processor_config.json"  # holds tokenizer and extractor
    try:
        if path.exists():
            config = json.loads(path.read_text())
        elif nested.exists():
            config = json.loads((path := nested).read_text()).get("feature_extractor", {})
        else:
            return Recipe()
        kind = config.get("feature_extractor_type", "Wav2Vec2FeatureExtractor")
        size, padding = config.get("feature_size", 1), config.get("padding_value", 0)
        rate, normalize = config.get("sampling_rate", 16_000), config.get("do_normalize", True)
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if kind != "Wav2Vec2FeatureExtractor" or size != 1 or padding != 0 or rate not in RATES:
        raise InputError(f"{path} is of a {kind} that does more than scale and pad raw samples")
    return Recipe(rate, normalize)


def tower(
    graph: nnx.GraphDef,
    params: Any,
    forward: Callable[..., tuple[outputs.Outputs, jax.Array]],
    *,
    folder: Path,
    options: AudioOptions,
    least: int,
    layers: Sequence[str | int] = (),
    default: str,
    about: dict[str, Any],
) -> Tower:
    """Return a Tower that reads audio files.

    Files are prepared as by the checkpoint's feature extractor.

    Args:
      forward: (module, samples [B, N], lengths [B]) -> the outputs by name and the mask [B, L] of
        the frames that are heard.
      least: samples of the first frame; a shorter file cannot be encoded.

    Raises:
      InputError: what `read_recipe` and `outputs.tower` raise, or `max_seconds` is less than one
        frame.
    """
    recipe = read_recipe(folder)
    if options.normalize_samples is not None:
        recipe = recipe._replace(normalize=options.normalize_samples)
    if options.max_seconds * recipe.rate < least:
        raise InputError(f"max_seconds {options.max_seconds:g} is less than one frame takes")

    def batches(paths: Sequence[str], size: int) -> Iterator[Batch]:
        return sample_batches(paths, size, recipe, least=least, options=options)

    scaled = "zero mean and unit variance" if recipe.normalize else "not normalized"
    return outputs.tower(
        "audio",
        graph,
        params,
        forward,
        batches=batches,
        example=(jax.ShapeDtypeStruct((1, recipe.rate), np.float32), outputs.integers(1)),
        layers=layers,
        default=default,
        about={
            **about,
            "preprocessing": f"mono, {recipe.rate} Hz, {scaled}, cut at {options.max_seconds:g} s",
        },
    )


def sample_batches(
    paths: Sequence[str],
    size: int,
    recipe: Recipe = Recipe(),
    *,
    least: int = 1,
    options: AudioOptions = AudioOptions(),
) -> Iterator[Batch]:
    """Yield batches of samples, files of similar length in one batch.

    A batch has samples float32 [B, N] and their lengths int32 [B]. N is the first of `BUCKETS` (or
    `max_seconds`) that holds the batch's longest file, so there are as many programs as buckets in
    use. Lengths are known from the headers beforehand: only one batch is in memory at a time. Files
    that cannot be read are left out and reported with the batch they belonged to.
    """
    longest = math.ceil(options.max_seconds * recipe.rate)
    buckets = [bucket * recipe.rate for bucket in BUCKETS if bucket < options.max_seconds]
    buckets.append(longest)

    def one(path: str) -> np.ndarray | str:
        samples = read(path, recipe.rate, options.max_seconds)
        if isinstance(samples, str):
            return samples
        if len(samples) < least:
            return f"{len(samples)} samples at {recipe.rate} Hz, but a frame takes {least}"
        return normalize(samples) if recipe.normalize else samples

    with ThreadPoolExecutor(options.workers or os.cpu_count()) as pool:
        seconds = np.array(list(pool.map(duration, paths)), float)
        order = np.argsort(-seconds, kind="stable")  # longest first: memory peaks early
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            results = list(pool.map(one, [paths[row] for row in rows]))
            kept = {
                row: samples
                for row, samples in zip(rows.tolist(), results, strict=True)
                if not isinstance(samples, str)
            }
            failed = {
                row: why
                for row, why in zip(rows.tolist(), results, strict=True)
                if isinstance(why, str)
            }
            lengths = pad_to(np.array([len(line) for line in kept.values()], np.int32), size)
            width = next(bucket for bucket in buckets if bucket >= lengths.max())
            samples = np.zeros((size, width), np.float32)
            for index, line in enumerate(kept.values()):
                samples[index, : len(line)] = line
            rows = np.array(list(kept), int)
            cut = int((seconds[rows] > options.max_seconds).sum())
            yield Batch(rows, (samples, lengths), failed, cut)


def read(path: str, rate: int, seconds: float = math.inf) -> np.ndarray | str:
    """Return a file's samples float32 [n] at `rate`, or an error message.

    The samples are the mean of the channels; the message says why the file cannot be read.

    Args:
      seconds: the file is cut there, before its rate is changed.
    """
    if not storage.remote(path) and not os.path.isfile(path):
        return "no such file"
    try:
        samples, file_rate = _decode(path, seconds)
    except DAMAGE as error:
        return getattr(error, "error_string", "") or str(error) or type(error).__name__
    if not len(samples):
        return "no samples"
    if file_rate not in RATES:
        return f"a rate of {file_rate} samples a second"
    if not np.isfinite(samples).all():
        return "samples that are not numbers"
    return resample(samples.mean(axis=1), file_rate, rate)


def duration(path: str) -> float:
    """Return a file's seconds by its header, 0 if unreadable."""
    try:
        if soundfile is not None:
            with storage.open_file(path) as file:
                header = soundfile.info(file)
            return header.frames / header.samplerate
        rate, samples = _read_wav(path)
        return len(samples) / rate
    except (*DAMAGE, ZeroDivisionError):
        return 0.0


def normalize(samples: np.ndarray) -> np.ndarray:
    """Return samples [n] with zero mean and unit variance.

    The formula is Wav2Vec2FeatureExtractor's: (x - mean) / sqrt(variance + 1e-7).
    """
    return (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)


def resample(samples: np.ndarray, old: int, new: int) -> np.ndarray:
    """Resample [n] from rate `old` to `new` by band-limited interpolation.

    y(t) = sum_i x_i h(t - i / old) with h(t) = c / old sinc(c t) cos²(π c t / 12), zero from six
    zero crossings on, and c = 0.99 min(old, new): what torchaudio.functional.resample does by
    default (Smith, "Digital Audio Resampling"). Evaluated polyphase, in float64.

    Returns:
      float32 [ceil(n new / old)].
    """
    if old == new:
        return samples.astype(np.float32)
    old, new = old // math.gcd(old, new), new // math.gcd(old, new)
    cutoff = ROLLOFF * min(old, new)
    # The kernel on the grid of old * new points a second, on which both rates' samples lie. Its
    # centre lies at a multiple of `old`, the step between outputs.
    half = math.ceil(math.ceil(ZEROS * old * new / cutoff) / old) * old
    t = np.clip(np.arange(-half, half + 1) * (cutoff / (old * new)), -ZEROS, ZEROS)
    kernel = np.sinc(t) * np.cos(np.pi * t / (2 * ZEROS)) ** 2 * (cutoff / old)
    start, count = half // old, -(-len(samples) * new // old)
    return upfirdn(kernel, samples, new, old)[start : start + count].astype(np.float32)


def _decode(path: str, seconds: float) -> tuple[np.ndarray, int]:
    """Return at most the first `seconds` of samples, and their rate.

    Samples are float32 [n, C]; integer formats are scaled to [-1, 1).
    """
    if soundfile is not None:
        with storage.open_file(path) as raw, soundfile.SoundFile(raw) as file:
            count = int(min(file.frames, seconds * file.samplerate))
            return file.read(count, dtype="float32", always_2d=True), file.samplerate
    try:
        rate, samples = _read_wav(path)
    except ValueError as error:
        why = str(error).rstrip(".")
        raise ValueError(f"{why}; the package soundfile reads more formats") from None
    samples = samples[: int(min(len(samples), seconds * rate))]
    samples = samples[:, None] if samples.ndim == 1 else samples
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128, rate
    if samples.dtype.kind == "i":
        return samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min), rate
    return samples.astype(np.float32), rate


def _read_wav(path: str) -> tuple[int, np.ndarray]:
    """Read rate and samples [n] or [n, C] of a WAV file.

    The samples stay on disk, memory-mapped, where their format allows it.
    """
    try:
        return wavfile.read(path, mmap=True)
    except ValueError:  # NumPy has no type of three bytes a sample
        return wavfile.read(path)
