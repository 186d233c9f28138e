"""Make the torch backend's inputs from the JAX towers' batches.

Inputs are NumPy arrays by the names that transformers gives them.
"""

import bisect
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from mmjax.core.errors import InputError
from mmjax.encoders.core import Batch, Batches
from mmjax.encoders.inputs import audio, text
from mmjax.encoders.inputs.images import pixel_batches
from mmjax.encoders.inputs.pixels import ImageOptions, Pixels
from mmjax.encoders.torch.models import Model, library, reported

NOWHERE = Path(os.devnull)  # stands for a folder without files
Inputs = tuple[dict[str, np.ndarray], np.ndarray | None]  # by transformers' names; a mask [B, L]


class Reading(NamedTuple):
    """Functions that turn inputs into batches and module arguments."""

    batches: Batches
    split: Callable[..., Iterator[Inputs]]  # (*arrays of a batch) -> one item for each pass
    example: tuple[np.ndarray, ...]  # arrays of a batch
    about: dict[str, str]
    pooling: str = "mean"  # of outputs for which no other is named
    recipe: text.Recipe | None = None  # of `sentence_embedding`


def of_images(model: Model, options: ImageOptions) -> Reading:
    """Return the reading of images: pixels float32 [B, 3, H, W].

    They are prepared as the image processor says.

    Raises:
      InputError: an unknown processor, unless `reshape` and `preprocessing` say all there is.
    """
    try:
        pixels = Pixels.read(model.folder or NOWHERE, options, model.pixels)
    except InputError:
        if options.reshape is None or options.preprocessing is None:
            raise
        pixels = Pixels.read(NOWHERE, options, Pixels(options.reshape))
    normalize = jax.jit(lambda raw: pixels.normalize(raw).transpose(0, 3, 1, 2))

    def batches(paths: Sequence[str], size: int) -> Iterator[Batch]:
        return pixel_batches(paths, size, pixels.apply, pixels.size, options)

    def split(raw: jax.Array) -> Iterator[Inputs]:
        yield {"pixel_values": np.array(normalize(raw))}, None

    example = np.zeros((2, *pixels.size, 3), np.uint8)
    return Reading(batches, split, (example,), {"preprocessing": str(pixels)})


def of_texts(model: Model, options: text.TextOptions) -> Reading:
    """Return the reading of texts: ids and mask int64 [B, L].

    Rows that only fill the batch are left out. If the tokenizer makes no mask, the model sees its
    padding, which is then to `max_length`.

    Raises:
      InputError: no usable tokenizer, or sentence-transformers' files that mmjax cannot follow.
    """
    folder = model.folder or NOWHERE
    recipe = text.Recipe(None, False, None)
    if model.pools and options.pooling:
        raise InputError(
            f"this model pools by itself; ask for the layer token_embeddings:{options.pooling}"
        )
    if not model.pools:
        try:
            recipe = text.read_recipe(folder, options.pooling)
        except InputError as error:
            raise InputError(f"{error}; the kind sentence_transformers may have it") from None
    words = text.read_words(folder, options, model.window, recipe)
    masked = model.pools or "attention_mask" in words.tokenizer.model_input_names
    options = options if masked else replace(options, padding="max_length")

    def batches(texts: Sequence[str], size: int) -> Iterator[Batch]:
        prompted = [model.prompt + line for line in texts]
        return text.token_batches(words.tokenizer, prompted, size, words.length, options)

    def split(ids: jax.Array, mask: jax.Array) -> Iterator[Inputs]:
        real = np.asarray(mask)
        count = max(1, len(real) - np.any(real, axis=1)[::-1].argmax())
        inputs = {"input_ids": np.array(ids[:count], np.int64)}
        if masked:
            inputs["attention_mask"] = np.array(real[:count], np.int64)
        yield inputs, real[:count]

    length = min(16, words.length)
    example = np.zeros((2, length), np.int32), np.ones((2, length), bool)
    manifest = {"preprocessing": str(words)}
    pooling = recipe.pooling or "mean"
    if model.pools or model.prefix:  # the model itself gives a vector of the text
        return Reading(batches, split, example, manifest, pooling)
    manifest["sentence_embedding"] = str(recipe)
    return Reading(batches, split, example, manifest, pooling, recipe)


def of_audio(
    model: Model, options: audio.AudioOptions, runs: Callable[[dict[str, np.ndarray]], bool]
) -> Reading:
    """Return the reading of audio: samples or extracted features per file.

    Features are those of transformers' feature extractor, for models that do not read raw samples.
    Each file is its own pass, unpadded: many audio models hear the padding.

    Args:
      runs: returns True if the model runs on such arrays, to find the shortest file it can read.

    Raises:
      InputError: no usable feature extractor.
    """
    extractor, least = None, 1
    try:
        recipe = audio.read_recipe(model.folder or NOWHERE)
        if options.normalize_samples is not None:
            recipe = recipe._replace(normalize=options.normalize_samples)
        preprocessing = "zero mean and unit variance" if recipe.normalize else "not normalized"
    except InputError:
        with reported(f"{model.folder} has no usable feature extractor"):
            extractor = library("transformers").AutoFeatureExtractor.from_pretrained(model.folder)
        recipe = audio.Recipe(extractor.sampling_rate, normalize=False)
        preprocessing = type(extractor).__name__

    def features(samples: np.ndarray) -> dict[str, np.ndarray]:
        if extractor is None:
            return {"input_values": np.array(samples[None])}
        extracted = extractor(samples, sampling_rate=recipe.rate, return_tensors="np")
        return {name: np.asarray(values) for name, values in extracted.items()}

    if extractor is None:
        least += bisect.bisect_left(
            range(1, recipe.rate + 1),
            True,
            key=lambda count: runs(features(np.zeros(count, np.float32))),
        )

    def batches(paths: Sequence[str], size: int) -> Iterator[Batch]:
        return audio.sample_batches(paths, size, recipe, least=least, options=options)

    def split(samples: jax.Array, lengths: jax.Array) -> Iterator[Inputs]:
        for line, length in zip(np.asarray(samples), np.asarray(lengths), strict=True):
            if length:
                yield features(line[:length]), None

    example = np.zeros((1, recipe.rate), np.float32), np.array([recipe.rate])
    preprocessing = f"mono, {recipe.rate} Hz, {preprocessing}, cut at {options.max_seconds:g} s"
    return Reading(batches, split, example, {"preprocessing": preprocessing})
