"""Torch backend: encode with any torch module, on CPU or CUDA.

It is for models that have no tower in mmjax, and runs on the batches of the JAX towers. Modules
come from transformers and sentence-transformers (`models`), or from torchvision, timm and files
(`vision`); `inputs` makes what they read. Layers are named and pooled as in `outputs`: outputs by
their path in what the module returns (`pooler_output`, `hidden_states.3`; `output` if that is one
tensor), and besides them every module by its name (`avgpool`, `classifier.3`), whose output a hook
copies (`layers`).
"""

import contextlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax.core.errors import InputError
from mmjax.encoders import outputs
from mmjax.encoders.checkpoints import dense, hub
from mmjax.encoders.core import Tower, pad_to
from mmjax.encoders.inputs import audio, text
from mmjax.encoders.inputs.pixels import ImageOptions
from mmjax.encoders.torch import models, vision
from mmjax.encoders.torch.inputs import Reading, of_audio, of_images, of_texts
from mmjax.encoders.torch.layers import choose, default, named, rows, watch
from mmjax.encoders.torch.models import HALVES, Model, Request, library, reported

KINDS: dict[str, Callable[[Request], Model]] = {
    "transformers": models.transformers,
    "sentence_transformers": models.sentence_transformers,
    "torchvision": vision.torchvision,
    "timm": vision.timm,
    "custom": vision.custom,
}
DTYPES = ("float32", "bfloat16", "float16")
Pass = Callable[[dict[str, np.ndarray], bool], dict[str, Any]]

pool = jax.jit(outputs.pool, static_argnames="how")


def load(
    *,
    weights: str,
    kind: str = "auto",
    modality: str | None = None,
    revision: str | None = None,
    layers: Sequence[str | int] = (),
    dtype: str = "float32",
    architecture: str | None = None,
    trust: bool = False,
    device: str | None = None,
    threads: int | None = None,
    image: ImageOptions = ImageOptions(),
    text_options: text.TextOptions = text.TextOptions(),
    audio_options: audio.AudioOptions = audio.AudioOptions(),
) -> Tower:
    """Load a torch module as a Tower.

    The Tower's `params` are empty, and its `encode` gives NumPy arrays.

    Args:
      weights: folder, packaged name or hub id; a name of torchvision's or timm's; or a file.
      kind: of KINDS, or auto: folders and hub ids are transformers', bare names torchvision's or
        timm's if they have them, and files are custom.
      modality: image, text or audio if the model does not say: a dual encoder, a custom one.
      revision: of a hub id, or the name of torchvision's weights (DEFAULT unless given).
      layers: outputs or modules, as NAME, NAME:POOLING or the number of a hidden state. A module
        that is called more than once gives what it last returned.
      dtype: of parameters and computation, one of DTYPES.
      architecture: torchvision's or timm's name of what a file of weights fills, or the class of
        transformers if not AutoModel.
      trust: run code that comes with the weights: a pickled module, a repository's own classes.
      device: torch's name of it; cuda where there is one, else cpu.
      threads: of torch on the CPU, for the whole process.

    Raises:
      InputError: torch or a package is missing; no such weights, or they do not fit; the code is
        not trusted; the model does not run on such batches; no such layer.
    """
    try:
        import torch
    except ImportError:
        raise InputError(
            "the torch backend needs PyTorch, which is not installed; pip install 'mmjax[torch]'"
        ) from None
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
    if modality not in (None, *HALVES):
        raise InputError(f"modality {modality!r} is none of {', '.join(HALVES)}")
    if threads:
        torch.set_num_threads(threads)
    precision = getattr(torch, dtype)
    request = Request(weights, revision, modality, architecture, precision, trust)
    kind = guess(request) if kind == "auto" else kind
    if kind not in KINDS:
        raise InputError(f"kind {kind!r} is none of auto, {', '.join(KINDS)}")
    model = KINDS[kind](request)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with reported(f"{weights} cannot be moved to device {device!r}"):
        model.module.to(device, precision)
    model.module.eval().requires_grad_(False)

    asked = [str(layer).removeprefix(model.prefix) for layer in layers]
    run = passes(model, device, precision, [layer.partition(":")[0] for layer in asked])
    if model.modality == "image":
        reading = of_images(model, image)
    elif model.modality == "text":
        reading = of_texts(model, text_options)
    else:
        reading = of_audio(model, audio_options, lambda inputs: runs(run, inputs))
    manifest = {
        "encoder": f"torch:{kind}:{architecture or weights}",
        "revision": model.revision,
        "torch": torch.__version__,
        **reading.about,
    }
    with reported(f"{weights} does not run on a batch of {model.modality}"):
        return tower(model, reading, run, asked, manifest)


def guess(request: Request) -> str:
    """Return the kind of weights that `auto` stands for, see `load`."""
    path, name = Path(request.weights), request.architecture or request.weights
    if path.is_dir():
        parts = (path / "modules.json").exists() and not (path / "config.json").exists()
        return "sentence_transformers" if parts else "transformers"
    if path.is_file() and not request.architecture:
        return "custom"
    if "/" not in name and name not in hub.PACKAGED:
        has = importlib.util.find_spec
        if has("torchvision") and name in library("torchvision").models.list_models():
            return "torchvision"
        if has("timm") and library("timm").is_model(name):
            return "timm"
    return "transformers"


def tower(
    model: Model, reading: Reading, run: Pass, layers: Sequence[str], about: dict[str, str]
) -> Tower:
    """Return the Tower of a model and its reading of inputs.

    Its layers are found by one pass over the example.

    Raises:
      InputError: no such layer, or it cannot be pooled so.
    """
    ((inputs, mask),) = reading.split(*reading.example)
    try:
        tensors = run(inputs, True)
    except Exception:  # not every model returns hidden states
        tensors = run(inputs, False)
    count = len(next(iter(inputs.values())))
    every = {name: rows(tensor, count) for name, tensor in tensors.items()}
    layer_rows: dict[str, Any] = {k: values for k, values in every.items() if values is not None}
    recipe = reading.recipe if "last_hidden_state" in layer_rows else None
    behind = [dense.read(folder, np.float32) for folder in recipe.dense] if recipe else []
    if recipe is not None:
        layer_rows["sentence_embedding"] = text.embed(layer_rows, mask, recipe, behind)
    layers = layers or default(model, layer_rows)
    chosen = choose(layers, layer_rows, model.module, reading.pooling, mask is not None)
    needed = {name for name, _ in chosen}
    if recipe is not None and "sentence_embedding" in needed:
        needed |= {"last_hidden_state", "pooler_output"}
    states = any("hidden_states" in name for name in needed)

    def vectors(tensors: Mapping[str, Any], mask: np.ndarray | None) -> list[np.ndarray]:
        layer_rows: dict[str, Any] = {
            name: rows(tensors[name], len(tensors[name])) for name in needed & tensors.keys()
        }
        if recipe is not None and "sentence_embedding" in needed:
            layer_rows["sentence_embedding"] = text.embed(layer_rows, mask, recipe, behind)
        return [np.asarray(pool(layer_rows[name], mask, how)) for name, how in chosen]

    def encode(params: tuple[()], *arrays: jax.Array) -> tuple[np.ndarray, ...]:
        del params
        parts = [vectors(run(inputs, states), mask) for inputs, mask in reading.split(*arrays)]
        joined = (np.concatenate(values) for values in zip(*parts, strict=True))
        return tuple(pad_to(values, len(arrays[0])) for values in joined)

    names = [name if how is None else f"{name}:{how}" for name, how in chosen]
    widths = [values.shape[1] for values in vectors(tensors, mask)]
    return Tower(
        modality=model.modality,
        layers=dict(zip(names, widths, strict=True)),
        params=(),
        batches=reading.batches,
        encode=encode,
        about=about,
    )


def passes(model: Model, device: str, dtype: Any, watched: Sequence[str]) -> Pass:
    """Return a function that runs the model once.

    It maps arrays by name to tensors by name: the model's outputs and those of `watched` modules.
    """
    import torch

    kept = watch(model.module, watched)

    def run(inputs: dict[str, np.ndarray], states: bool) -> dict[str, Any]:
        tensors = {name: torch.from_numpy(values).to(device) for name, values in inputs.items()}
        for name, values in tensors.items():
            tensors[name] = values.to(dtype) if values.is_floating_point() else values
        kept.clear()
        with torch.inference_mode(), _exactly(dtype):
            returned = dict(named(model.run(tensors, states)))
        return {**kept, **returned}

    return run


def runs(run: Pass, inputs: dict[str, np.ndarray]) -> bool:
    """Return True if the model can read such arrays at all."""
    with contextlib.suppress(Exception):
        run(inputs, False)
        return True
    return False


def _exactly(dtype: Any) -> contextlib.AbstractContextManager:
    """Return a context in which cuDNN computes float32 exactly.

    By default it convolves float32 in fewer bits (TF32); parity is worth the time.
    """
    import torch

    if dtype == torch.float32 and torch.backends.cudnn.is_available():
        return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    return contextlib.nullcontext()
