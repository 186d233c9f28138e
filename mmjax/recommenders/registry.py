"""Recommenders by name, and their options by the two signatures."""

import importlib
import inspect
import os
import pkgutil
from collections.abc import Mapping
from typing import Any

from flax import nnx

from mmjax.core.errors import InputError
from mmjax.core.names import suggestion

# Of this folder, what is no recommender.
SHARED = ("base", "registry", "losses", "layers")


def find(name: str) -> type[nnx.Module]:
    """The recommender class of a module: `vbpr` here, or `my_package.my_model` anywhere.

    Raises:
      InputError: no such module, or not exactly one recommender in it.
    """
    path = name if "." in name else f"mmjax.recommenders.{name}"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not path.startswith(error.name):
            raise
        here = [file.name for file in pkgutil.iter_modules([os.path.dirname(__file__)])]
        known = [file for file in here if file not in SHARED]
        raise InputError(f"no recommender {name!r}{suggestion(name, known)}") from None
    classes = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, nnx.Module)
        and value.__module__ == module.__name__
        and hasattr(value, "scores")
    ]
    if len(classes) != 1:
        raise InputError(f"{path} holds {len(classes)} recommenders; it must hold exactly one")
    return classes[0]


def split_options(
    recommender: type[nnx.Module], options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sorts options into those of `__init__` and those of `loss`, by the two signatures.

    Raises:
      InputError: an option that neither takes, or one that has no default and is not given.
    """
    signatures = {"__init__": _keywords(recommender.__init__, skip={"rngs"})}
    if hasattr(recommender, "loss"):
        signatures["loss"] = _keywords(recommender.loss, skip={"key"})
    known = [name for names in signatures.values() for name in names]
    for name in options:
        if name not in known:
            raise InputError(
                f"{recommender.__name__} has no option {name!r}{suggestion(name, known)}"
            )
    for names in signatures.values():
        for name, parameter in names.items():
            if parameter.default is inspect.Parameter.empty and name not in options:
                raise InputError(f"{recommender.__name__} needs the option {name!r}")
    shaping = {k: v for k, v in options.items() if k in signatures["__init__"]}
    defaults = {k: p.default for k, p in signatures.get("loss", {}).items()}
    return shaping, {k: options.get(k, default) for k, default in defaults.items()}


def _keywords(function: Any, skip: set[str]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters.items()
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    return {k: p for k, p in parameters if p.kind == keyword_only and k not in skip}
