"""Encoders by name: their modules, their options, what is wrong with either."""

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

# Of any model that torch computes; stores that were made by it carry this name.
HOSTED = {"hosted": "mmjax.encoders.torch.backend"}


def find_encoder(name: str) -> ModuleType:
    """The module of an encoder: a file of `mmjax.encoders.towers`, or a dotted path elsewhere.

    Raises:
      InputError: there is none; the sentence lists those there are.
    """
    path = name if "." in name else HOSTED.get(name, f"mmjax.encoders.towers.{name}")
    try:
        found = importlib.util.find_spec(path)
    except (ModuleNotFoundError, ValueError):
        found = None
    module = importlib.import_module(path) if found else None
    if module is None or not hasattr(module, "load"):
        names = encoders()
        close = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise InputError(f"there is no encoder {name!r}; {hint}there are {', '.join(names)}")
    return module


def encoders() -> list[str]:
    """The names of the package's own encoders."""
    path = mmjax.encoders.towers.__name__
    inside = [module.name for module in pkgutil.iter_modules(mmjax.encoders.towers.__path__)]
    own = [name for name in inside if hasattr(importlib.import_module(f"{path}.{name}"), "load")]
    return sorted([*own, *HOSTED])


def choose_encoder(weights: str | None, revision: str | None = None) -> str:
    """The encoder for a checkpoint: whose `MODEL_TYPES` hold the model_type of its config.json.

    Raises:
      InputError: no weights, or a model that none of the encoders computes.
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
    """The options an encoder understands, with their defaults; those of dataclasses one by one."""
    flat: dict[str, Any] = {}
    for key, parameter in inspect.signature(find_encoder(name).load).parameters.items():
        if dataclasses.is_dataclass(parameter.default):
            flat |= dataclasses.asdict(parameter.default)
        else:
            flat[key] = parameter.default
    return flat


def load_encoder(name: str, options: dict[str, Any]) -> Tower | Fitted:
    """Loads an encoder with those options that are not None.

    Raises:
      InputError: no such encoder, an option it does not have, or one it needs and is not given.
    """
    load = find_encoder(name).load
    known = options_of(name)
    given = {key: value for key, value in options.items() if value is not None}
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise InputError(
                f"encoder {name} has no option {key!r}; {hint}it has {', '.join(known)}"
            )
    for key, default in known.items():
        if default is inspect.Parameter.empty and key not in given:
            raise InputError(f"encoder {name} needs the option {key}")
    arguments: dict[str, Any] = {}
    for key, parameter in inspect.signature(load).parameters.items():
        if dataclasses.is_dataclass(parameter.default):
            names = [field.name for field in dataclasses.fields(parameter.default)]
            changed = {name: given[name] for name in names if name in given}
            arguments[key] = dataclasses.replace(parameter.default, **changed)
        elif key in given:
            arguments[key] = given[key]
    return load(**arguments)
