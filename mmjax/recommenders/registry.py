"""Look up recommenders by name and split their options."""

import importlib
import inspect
import os
import pkgutil
from collections.abc import Mapping
from typing import Any

from flax import nnx

from mmjax.core.errors import InputError
from mmjax.core.names import suggestion

# Modules of this folder that are no recommenders.
SHARED = ("base", "registry", "losses", "layers")


def find(name: str) -> type[nnx.Module]:
    """Return the recommender class of a module.

    `name` is a module of this folder (`vbpr`) or the path of any module (`my_package.my_model`).

    Raises:
      InputError: there is no such module, or it does not hold exactly one recommender.
    """
    path = name if "." in name else f"mmjax.recommenders.{name}"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not path.startswith(error.name):
            raise
        module_names = [file.name for file in pkgutil.iter_modules([os.path.dirname(__file__)])]
        known = [file for file in module_names if file not in SHARED]
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
    """Split options into those of `__init__` and of `loss`.

    The two signatures decide. Options of `loss` that are not given get their defaults.

    Raises:
      InputError: neither takes an option, or an option without a default is missing.
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
