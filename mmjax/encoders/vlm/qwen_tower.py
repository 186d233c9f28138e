"""Build the Tower of a Qwen vision-language checkpoint.

The families differ by `Kind`.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.core.errors import InputError
from mmjax.encoders.checkpoints import hub, locate
from mmjax.encoders.checkpoints import int8 as eight_bits
from mmjax.encoders.core import Tower
from mmjax.encoders.inputs.pixels import BICUBIC, ImageOptions
from mmjax.encoders.vlm import decoder, embedding, generation, qwen_vl
from mmjax.encoders.vlm.lvlm import bucket, pad
from mmjax.encoders.vlm.prompts import Family
from mmjax.encoders.vlm.qwen_vl import Patches
from mmjax.encoders.vlm.rotary import Rotary

AROUND = ("<|vision_start|>", "<|vision_end|>")


class Kind(NamedTuple):
    """Description of one model family."""

    model_types: Sequence[str]
    vision: type  # its VisionConfig
    text: dict[str, Any]  # defaults of the decoder's configuration
    turns: Callable[[decoder.Config, dict[str, Any]], Rotary]
    build: Callable[..., nnx.Module]  # (config, vision, turns, mean, std)
    key_map: Callable[[decoder.Config], list[hub.Rule]]
    pixels: dict[str, Any]  # its image processor's defaults


def tower(
    kind: Kind,
    *,
    weights: str,
    revision: str | None = None,
    prompt: str = "",
    pooling: str = "eos",
    layers: Sequence[str | int] = (),
    dtype: str = "float32",
    int8: bool = False,
    max_image_tokens: int | None = None,
    image: ImageOptions = ImageOptions(),
    answers: generation.GenerationOptions = generation.GenerationOptions(),
) -> Tower:
    """Build the tower that embeds images and texts under a prompt.

    The tensors are read when they are placed on devices.

    Args:
      kind: the model family.
      weights: checkpoint folder or hub id.
      revision: of the hub id.
      prompt: a file, see `prompts`; without one the model is asked to describe the image.
      pooling: "eos", "last_prompt", "mean_prompt" or "mean_generated"; see `vlm.embedding`.
      layers: numbers of hidden states; by default the last.
      dtype: of parameters, cache and computation, float32 or bfloat16.
      int8: quantise the decoder's kernels to eight bits, see `int8`.
      max_image_tokens: images are shrunk to this many tokens; by default the limit of the
        checkpoint's image processor.
      image: options of the image processor.
      answers: options of generation.

    Raises:
      InputError: the checkpoint is missing, lacks a shard or has another architecture; or as in
        `read_pixels`, `ends_of` and `embedding.tower`.
    """
    if int8:
        eight_bits.check()
    checkpoint = hub.find(weights, revision)
    folder = checkpoint.folder
    config_json = hub.read_config(folder, kind.model_types)
    config = qwen_vl.text_config(folder, config_json, **kind.text)
    vision: Any = qwen_vl.vision_config(folder, kind.vision, config_json)
    pixels = read_pixels(folder, kind, vision, image, max_image_tokens)
    statistics = pixels.pop("mean"), pixels.pop("std")
    turns = kind.turns(config, config_json)
    graph, params = hub.load_module(
        lambda: kind.build(config, vision, turns, *statistics),
        checkpoint.weights,
        kind.key_map(config),
        jnp.dtype(dtype),
        lazy=True,
        then=eight_bits.of if int8 else lambda name: None,
    )
    image_id = config_json.get("image_token_id", 151_655)
    family = family_of(image_id, _window(config_json), **pixels)
    return embedding.tower(
        graph,
        params,
        config=config,
        family=family,
        folder=folder,
        ends=ends_of(folder, config_json),
        prompt=prompt,
        pooling=pooling,
        layers=layers,
        image=image,
        answers=answers,
        about={
            "encoder": f"{kind.model_types[0]}:{checkpoint.name}",
            "revision": checkpoint.revision,
            "int8": int8,
            "preprocessing": f"{pixels['patch']} pixel patches, {pixels['shortest']} to "
            f"{pixels['longest']} pixels, mean {statistics[0]}, std {statistics[1]}",
        },
    )


def family_of(image_id: int, window: int, *, patch: int, **bounds: Any) -> Family:
    """Build the image input of a family for its patch size.

    Args:
      image_id: placeholder id of an image token.
      window: maximum tokens of the decoder.
      patch: pixels along a patch's side.
      **bounds: further arguments of `qwen_vl.view`.
    """
    return Family(
        around=AROUND,
        image_id=image_id,
        view=partial(qwen_vl.view, patch=patch, **bounds),
        shape=lambda view: (int(view.grid[0, 0]) // 2, int(view.grid[1, 0]) // 2),
        collate=partial(collate, width=3 * patch * patch),
        window=window,
    )


def collate(views: Sequence[Patches], size: int, width: int) -> Patches:
    """Stack views into one batch, padded to P patches.

    Missing rows consist of padding only.

    Args:
      views: one for each row.
      size: rows of the batch, B.
      width: values of a patch, 3 * patch * patch.

    Returns:
      Pixels [B, P, width], image [B, P], at and grid [B, 2, P].
    """
    count = bucket(max(len(view.pixels) for view in views))
    empty = Patches(
        np.zeros((0, width), np.uint8),
        np.zeros(0, np.int32),
        *(np.zeros((2, 0), np.int32) for _ in "at"),
    )
    views = [*views, *[empty] * (size - len(views))]
    return Patches(
        *(
            np.stack([pad(part, count, axis) for part in parts])
            for axis, parts in zip((0, 0, 1, 1), zip(*views, strict=True), strict=True)
        )
    )


def read_pixels(
    folder: Path, kind: Kind, vision: Any, image: ImageOptions, tokens: int | None
) -> dict[str, Any]:
    """Read preprocessor_config.json and apply the user's options.

    Args:
      folder: of the checkpoint.
      kind: the model family, with its defaults.
      vision: configuration of the vision tower.
      image: the user's options.
      tokens: maximum tokens of an image.

    Returns:
      Arguments of `qwen_vl.view`, with `mean` and `std`.

    Raises:
      InputError: the model does not support an option, the file is not JSON or has another patch
        size, or the pixel bounds hold no token.
    """
    if image.reshape or image.preprocessing not in (None, "zscore"):
        raise InputError("this model reads images at their own shape, by zscore; do not reshape")
    source = locate.settings(image.image_processor) if image.image_processor else folder
    path = source if source.suffix == ".json" else source / "preprocessor_config.json"
    settings: dict[str, Any] = {}
    if path.exists():
        try:
            settings = json.loads(path.read_text())
        except ValueError as error:
            raise InputError(f"{path} is not JSON: {error}") from None
    size = {**kind.pixels, **(settings.get("size") or {})}
    pixels = {
        "patch": vision.patch_size,
        "shortest": settings.get("min_pixels") or size["shortest_edge"],
        "longest": settings.get("max_pixels") or size["longest_edge"],
        "mean": tuple(image.mean or settings.get("image_mean") or kind.pixels["mean"]),
        "std": tuple(image.std or settings.get("image_std") or kind.pixels["std"]),
        "resample": settings.get("resample", BICUBIC),
    }
    if settings.get("patch_size", pixels["patch"]) != pixels["patch"]:
        raise InputError(
            f"{path} cuts patches of {settings['patch_size']}, not of {pixels['patch']}"
        )
    if tokens is not None:
        area = (2 * pixels["patch"]) ** 2
        pixels["longest"] = min(pixels["longest"], tokens * area)
        pixels["shortest"] = min(pixels["shortest"], pixels["longest"])
    if pixels["longest"] < (2 * pixels["patch"]) ** 2:
        raise InputError(f"at most {pixels['longest']} pixels an image hold no token of it")
    return pixels


def ends_of(folder: Path, given: dict[str, Any]) -> tuple[int, ...]:
    """Return the ids that end an answer.

    They are eos_token_id of generation_config.json, else of config.json.

    Raises:
      InputError: neither file has one.
    """
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text()) if path.exists() else {}
    ends = settings.get("eos_token_id")
    if ends is None:
        ends = (given.get("text_config") or {}).get("eos_token_id", given.get("eos_token_id"))
    if ends is None:
        raise InputError(f"{folder} does not say which token ends an answer (eos_token_id)")
    return tuple(ends) if isinstance(ends, list) else (ends,)


def _window(given: dict[str, Any]) -> int:
    settings = {**given, **(given.get("text_config") or {})}
    return int(settings.get("max_position_embeddings", 32_768))
