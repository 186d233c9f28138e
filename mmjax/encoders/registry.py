"""Find encoders by name, check their options and load them."""

import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import pkgutil
from types import ModuleType
from typing import Any

import mmjax.encoders.towers
from mmjax.core.errors import InputError
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.core import Fitted, Tower

# Runs any model that torch can compute; its stores carry this name.
HOSTED = {"hosted": "mmjax.encoders.torch.backend"}


def find_encoder(name: str) -> ModuleType:
    """Import the module of an encoder.

    The name is a file of `mmjax.encoders.towers`, or the dotted path of another module.

    Raises:
      InputError: there is no such encoder; the message lists the existing ones.
    """
    path = name if "." in name else HOSTED.get(name, f"mmjax.encoders.towers.{name}")
    try:
        spec = importlib.util.find_spec(path)
    except (ModuleNotFoundError, ValueError):
        spec = None
    module = importlib.import_module(path) if spec else None
    if module is None or not hasattr(module, "load"):
        names = encoders()
        close = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise InputError(f"there is no encoder {name!r}; {hint}there are {', '.join(names)}")
    return module


def encoders() -> list[str]:
    """Return the sorted names of the package's encoders."""
    path = mmjax.encoders.towers.__name__
    modules = [module.name for module in pkgutil.iter_modules(mmjax.encoders.towers.__path__)]
    towers = [
        name for name in modules if hasattr(importlib.import_module(f"{path}.{name}"), "load")
    ]
    return sorted([*towers, *HOSTED])


def choose_encoder(weights: str | None, revision: str | None = None) -> str:
    """Return the name of the encoder for a checkpoint.

    Its `MODEL_TYPES` contain the model_type of the checkpoint's config.json.

    Raises:
      InputError: no weights, or no encoder computes the model.
    """
    if not weights:
        raise InputError("the encoder auto needs --weights, by which it is chosen")
    kind = hub.read_config(hub.find(weights, revision).folder).get("model_type")
    types: dict[str, list[str]] = {}
    for name in encoders():
        types[name] = list(getattr(find_encoder(name), "MODEL_TYPES", ()))
        if kind in types[name]:
            return name
    known = ", ".join(sorted(kind for kinds in types.values() for kind in kinds))
    raise InputError(
        f"{weights} is a {kind!r} model, which no encoder of mmjax computes (they know {known}); "
        "pass --backend=torch to run it with PyTorch"
    )


def options_of(name: str) -> dict[str, Any]:
    """Return an encoder's options with their defaults.

    A dataclass argument contributes each of its fields as an option.
    """
    flat: dict[str, Any] = {}
    for key, parameter in inspect.signature(find_encoder(name).load).parameters.items():
        default = parameter.default
        if dataclasses.is_dataclass(default) and not isinstance(default, type):
            flat |= dataclasses.asdict(default)
        else:
            flat[key] = default
    return flat


def load_encoder(name: str, options: dict[str, Any]) -> Tower | Fitted:
    """Load an encoder with the options that are not None.

    Raises:
      InputError: the encoder is unknown, an option is unknown, or a required option is missing.
    """
    load = find_encoder(name).load
    known = options_of(name)
    provided = {key: value for key, value in options.items() if value is not None}
    for key in provided:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise InputError(
                f"encoder {name} has no option {key!r}; {hint}it has {', '.join(known)}"
            )
    for key, default in known.items():
        if default is inspect.Parameter.empty and key not in provided:
            raise InputError(f"encoder {name} needs the option {key}")
    arguments: dict[str, Any] = {}
    for key, parameter in inspect.signature(load).parameters.items():
        default = parameter.default
        if dataclasses.is_dataclass(default) and not isinstance(default, type):
            names = [field.name for field in dataclasses.fields(default)]
            changed = {name: provided[name] for name in names if name in provided}
            arguments[key] = dataclasses.replace(default, **changed)
        elif key in provided:
            arguments[key] = provided[key]
    return load(**arguments)
