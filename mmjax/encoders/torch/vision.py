"""Load torch modules of torchvision, timm and pickle files."""

import difflib
import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from mmjax.core.errors import InputError
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.checkpoints.weights import tensors
from mmjax.encoders.inputs.pixels import IMAGENET, Pixels
from mmjax.encoders.torch.models import Model, Request, Run, library, reported

# Ducho's preprocessing, for modules that do not say theirs.
PIXELS = Pixels((224, 224), mean=IMAGENET[0], std=IMAGENET[1])


def torchvision(request: Request) -> Model:
    """Load a torchvision model by name.

    Its weights are DEFAULT, those that `revision` names, or a file's. Images are prepared as the
    weights' own transforms say.

    Raises:
      InputError: no such model or weights, or a file that does not fit.
    """
    package, name = library("torchvision"), request.architecture or request.weights
    models = package.models
    _check(name, models.list_models(), "torchvision has no model")
    entries = models.get_model_weights(name)
    chosen = "DEFAULT" if request.architecture else request.revision or "DEFAULT"
    _check(chosen, entries.__members__, f"torchvision's {name} has no weights")
    entry = entries[chosen]
    # The published weights of these two expect inputs that are scaled once more.
    rescaled = name in ("googlenet", "inception_v3")
    options = {"transform_input": True, "init_weights": False} if rescaled else {}
    if request.architecture:
        checkpoint = hub.find(request.weights, request.revision)
        module, revision = models.get_model(name, weights=None, **options), checkpoint.revision
        _fill(module, checkpoint.weights)
    else:
        revision = f"torchvision {package.__version__} {entry.name}"
        with reported(f"the weights {entry} cannot be had"):
            module = models.get_model(name, weights=entry, progress=False)
    return Model(module, _plain(module), "image", revision, defaults=(), pixels=_preset(entry))


def timm(request: Request) -> Model:
    """Load a timm model by name, without its classifier.

    The name is NAME or NAME.TAG. The weights are the published ones or a file's.

    Raises:
      InputError: no such model or weights, or a file that does not fit.
    """
    package, name = library("timm"), request.architecture or request.weights
    if request.revision and not request.architecture:
        raise InputError(f"timm's revisions are part of the name: {name}.{request.revision}")
    with reported(f"timm cannot make {name}"):
        module = package.create_model(name, pretrained=not request.architecture)
    revision = f"timm {package.__version__} {module.pretrained_cfg.get('tag', '')}".strip()
    if request.architecture:
        checkpoint = hub.find(request.weights, request.revision)
        revision = checkpoint.revision
        _fill(module, checkpoint.weights)
    module.reset_classifier(0)  # so that the output is the classifier's input
    data_config = importlib.import_module("timm.data").resolve_model_data_config(module)
    crop = tuple(data_config["input_size"][1:])
    height, width = (int(edge / data_config["crop_pct"]) for edge in crop)
    pixels = Pixels(
        (height, width) if data_config["crop_mode"] == "squash" else min(height, width),
        crop,
        int(Image.Resampling[data_config["interpolation"].upper()]),
        mean=tuple(data_config["mean"]),
        std=tuple(data_config["std"]),
        nearest=True,
    )
    return Model(module, _plain(module), "image", revision, pixels=pixels)


def custom(request: Request) -> Model:
    """Load a module that `torch.save` pickled.

    It is called with a batch: pixels, or token ids and mask.

    Raises:
      InputError: no such file, no module in it, or its code is not trusted.
    """
    import torch

    checkpoint = hub.find(request.weights, request.revision)
    path = checkpoint.weights
    if not path.is_file():
        raise InputError(f"{path} is no file, and a custom module is one that torch.save wrote")
    if not request.trust:
        raise InputError(
            f"{path} may hold a pickled module, and to read it is to run whatever code it brings; "
            "pass trust if you know where it is from, or an architecture if it is weights alone"
        )
    with reported(f"{path} cannot be unpickled (its classes must be importable)"):
        module = torch.load(path, map_location="cpu", weights_only=False)
    if not isinstance(module, torch.nn.Module):
        raise InputError(
            f"{path} holds a {type(module).__name__} and no module; name the architecture it fills"
        )
    modality = request.modality or "image"
    return Model(module, _plain(module), modality, checkpoint.revision, path.parent, pixels=PIXELS)


def _plain(module: Any) -> Run:
    return lambda inputs, states: module(*inputs.values())


def _preset(entry: Any) -> Pixels:
    """Return the transforms of torchvision's classification weights as `Pixels`."""
    preset = entry.transforms()
    if not {"resize_size", "crop_size"} <= vars(preset).keys():
        return PIXELS
    (resize,), (crop,) = preset.resize_size, preset.crop_size
    resample = Image.Resampling[preset.interpolation.name]
    mean, std = tuple(preset.mean), tuple(preset.std)
    return Pixels(resize, (crop, crop), int(resample), mean=mean, std=std, nearest=True)


def _fill(module: Any, path: Path) -> None:
    """Load weights of a file into a module without running code."""
    import torch

    state = {}
    for name, read in tensors(path):
        values = read()  # torch does not know NumPy's bfloat16
        values = values.astype("float32") if values.dtype.kind == "V" else values
        state[name] = torch.from_numpy(values)
    with reported(f"{path} does not fit {type(module).__name__}"):
        module.load_state_dict(state)


def _check(name: str, names: Iterable[str], lack: str) -> None:
    names = list(names)
    if name not in names:
        close = difflib.get_close_matches(name, names, 5) or names[:20]
        raise InputError(f"{lack} {name!r}; there are {', '.join(close)}, …")
