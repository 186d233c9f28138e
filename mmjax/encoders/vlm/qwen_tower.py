"""From a checkpoint of a Qwen vision-language model to its Tower; families differ in `Vision`."""

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
from mmjax.encoders.inputs.pixels import BICUBIC
from mmjax.encoders.inputs.pixels import Options as ImageOptions
from mmjax.encoders.vlm import decoder, embedding, generation, qwen_vl
from mmjax.encoders.vlm.lvlm import bucket, pad
from mmjax.encoders.vlm.prompts import Family
from mmjax.encoders.vlm.qwen_vl import Patches
from mmjax.encoders.vlm.rotary import Rotary

AROUND = ("<|vision_start|>", "<|vision_end|>")


class Kind(NamedTuple):
    """What one family says of itself."""

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
    answers: generation.Options = generation.Options(),
) -> Tower:
    """The tower of a checkpoint, folder or hub id, for images (and texts) under a prompt.

    The tensors are read when they are placed on devices.

    Args:
      prompt: a file, see `prompts`; without one the image is to be described.
      pooling: "eos", "last_prompt", "mean_prompt" or "mean_generated"; see `vlm.embedding`.
      layers: numbers of hidden states; the last unless given.
      dtype: of parameters, cache and computation, float32 or bfloat16.
      int8: the decoder's kernels take eight bits, see `int8`.
      max_image_tokens: images are made smaller to take no more; unless given, as the checkpoint's
        image processor says.

    Raises:
      InputError: no such checkpoint, of another architecture, a shard is missing; what
        `embedding.tower` raises.
    """
    if int8:
        eight_bits.check()
    checkpoint = hub.find(weights, revision)
    folder = checkpoint.folder
    given = hub.read_config(folder, kind.model_types)
    config = qwen_vl.text_config(folder, given, **kind.text)
    vision = qwen_vl.vision_config(folder, kind.vision, given)
    pixels = read_pixels(folder, kind, vision, image, max_image_tokens)
    colours = pixels.pop("mean"), pixels.pop("std")
    turns = kind.turns(config, given)
    graph, params = hub.load_module(
        lambda: kind.build(config, vision, turns, *colours),
        checkpoint.weights,
        kind.key_map(config),
        jnp.dtype(dtype),
        lazy=True,
        then=eight_bits.of if int8 else lambda name: None,
    )
    image_id = given.get("image_token_id", 151_655)
    family = family_of(image_id, _window(given), **pixels)
    return embedding.tower(
        graph,
        params,
        config=config,
        family=family,
        folder=folder,
        ends=ends_of(folder, given),
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
            f"{pixels['longest']} pixels, mean {colours[0]}, std {colours[1]}",
        },
    )


def family_of(image_id: int, window: int, *, patch: int, **bounds: Any) -> Family:
    """How images of these patches stand in a prompt; `bounds` are `qwen_vl.view`'s."""
    return Family(
        around=AROUND,
        image_id=image_id,
        view=partial(qwen_vl.view, patch=patch, **bounds),
        shape=lambda view: (int(view.grid[0, 0]) // 2, int(view.grid[1, 0]) // 2),
        collate=partial(collate, width=3 * patch * patch),
        window=window,
    )


def collate(views: Sequence[Patches], size: int, width: int) -> Patches:
    """Views of rows to one batch [B, P, ...]; rows that lack are padding altogether."""
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
    """What preprocessor_config.json says, with the user's changes.

    Raises:
      InputError: options that such a model cannot follow, or bounds that hold no image.
    """
    if image.reshape or image.preprocessing not in (None, "zscore"):
        raise InputError("this model reads images at their own shape, by zscore; do not reshape")
    source = locate.settings(image.image_processor) if image.image_processor else folder
    path = source if source.suffix == ".json" else source / "preprocessor_config.json"
    about: dict[str, Any] = {}
    if path.exists():
        try:
            about = json.loads(path.read_text())
        except ValueError as error:
            raise InputError(f"{path} is not JSON: {error}") from None
    size = {**kind.pixels, **(about.get("size") or {})}
    found = {
        "patch": vision.patch_size,
        "shortest": about.get("min_pixels") or size["shortest_edge"],
        "longest": about.get("max_pixels") or size["longest_edge"],
        "mean": tuple(image.mean or about.get("image_mean") or kind.pixels["mean"]),
        "std": tuple(image.std or about.get("image_std") or kind.pixels["std"]),
        "resample": about.get("resample", BICUBIC),
    }
    if about.get("patch_size", found["patch"]) != found["patch"]:
        raise InputError(f"{path} cuts patches of {about['patch_size']}, not of {found['patch']}")
    if tokens is not None:
        area = (2 * found["patch"]) ** 2
        found["longest"] = min(found["longest"], tokens * area)
        found["shortest"] = min(found["shortest"], found["longest"])
    if found["longest"] < (2 * found["patch"]) ** 2:
        raise InputError(f"at most {found['longest']} pixels an image hold no token of it")
    return found


def ends_of(folder: Path, given: dict[str, Any]) -> tuple[int, ...]:
    """The ids that end an answer: generation_config.json's, else config.json's.

    Raises:
      InputError: neither names one.
    """
    path = folder / "generation_config.json"
    about = json.loads(path.read_text()) if path.exists() else {}
    ends = about.get("eos_token_id")
    if ends is None:
        ends = (given.get("text_config") or {}).get("eos_token_id", given.get("eos_token_id"))
    if ends is None:
        raise InputError(f"{folder} does not say which token ends an answer (eos_token_id)")
    return tuple(ends) if isinstance(ends, list) else (ends,)


def _window(given: dict[str, Any]) -> int:
    about = {**given, **(given.get("text_config") or {})}
    return int(about.get("max_position_embeddings", 32_768))
