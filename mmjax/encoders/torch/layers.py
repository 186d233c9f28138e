"""Collect a torch module's outputs and inner activations by name.

The outputs of its submodules are copied by hooks; all become rows of float32.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.core.errors import InputError
from mmjax.encoders import outputs
from mmjax.encoders.torch.models import Model


def watch(module: Any, names: Sequence[str]) -> dict[str, Any]:
    """Register hooks that copy named modules' outputs on every pass.

    Returns:
      A dict that every pass fills with the tensors by name. A name may lead on into what the module
      returns, as `encoder.layer.3.0` does into a tuple; without that it is the first tensor.
    """
    modules = dict(module.named_modules())
    kept: dict[str, Any] = {}

    def keep(path: str, output: Any) -> None:
        # Copied, because the next step may change it in place, as ReLU(inplace=True) does.
        values = {name: tensor.clone() for name, tensor in named(output, path)}
        kept.update({path: next(iter(values.values()), None), **values})

    for path in {_module(name, modules) for name in names} - {""}:
        modules[path].register_forward_hook(lambda _, inputs, output, path=path: keep(path, output))
    return kept


def named(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every tensor of a module's output with its path.

    Paths begin with `name`; "output" is the path of a tensor at the root.
    """
    import torch

    if isinstance(value, torch.Tensor):
        yield name or "output", value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from named(part, f"{name}.{key}".lstrip("."))
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            yield from named(part, f"{name or 'output'}.{index}")


def rows(tensor: Any, count: int) -> np.ndarray | None:
    """Return a tensor as float32 rows, or None.

    Rows are [B, F], [B, L, D] or [B, H, W, C]; None stands for any other tensor. Of four axes torch
    has the channels second. A map of one place becomes a vector.
    """
    if tensor is None or not tensor.is_floating_point() or not 1 <= tensor.ndim <= 4:
        return None
    if len(tensor) != count:
        return None
    values = tensor.float().cpu().numpy()
    if values.ndim == 4:
        values = values.transpose(0, 2, 3, 1)
        return values[:, 0, 0] if values.shape[1:3] == (1, 1) else values
    return values[:, None] if values.ndim == 1 else values


def default(model: Model, found: Mapping[str, np.ndarray]) -> list[str]:
    """Return the layer used if the user names none.

    An image's tokens are pooled by `cls` (the first token), as ViT's classifiers do.
    """
    for name in model.defaults:
        if name in found:
            tokens = model.modality == "image" and found[name].ndim == 3
            return [f"{name}:cls" if tokens else name]
    raise InputError(f"name one of its layers: {_names(found, model.module)}")


def choose(
    layers: Sequence[str], found: Mapping[str, np.ndarray], module: Any, pooling: str, ragged: bool
) -> list[tuple[str, str | None]]:
    """Resolve layers to outputs or modules and their poolings.

    Raises:
      InputError: there is none such, it gives no rows, it is asked for twice, or cannot be pooled.
    """
    for layer in layers:
        name = layer.partition(":")[0]
        if name in found or re.fullmatch(r"-?\d+", name):
            continue
        modules = [path for path, _ in module.named_modules() if path]
        if name in modules:
            raise InputError(f"module {name} gives no [B, F], [B, L, D] or [B, C, H, W] in a pass")
        close = difflib.get_close_matches(name, [*found, *modules], 3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise InputError(f"there is no layer {name!r}; {hint}{_names(found, module)}")
    chosen = [outputs.resolve(layer, found, pooling, ragged) for layer in layers]
    if len(set(chosen)) < len(chosen):
        raise InputError(f"a layer is asked for twice in {', '.join(layers)}")
    return chosen


def _names(found: Mapping[str, np.ndarray], module: Any) -> str:
    shallow = [name for name, _ in module.named_modules() if name and name.count(".") < 2]
    more = f", … and {len(shallow) - 60} more" if len(shallow) > 60 else ""
    return (
        f"outputs {', '.join(found)}; modules {', '.join(shallow[:60])}{more} and those in them "
        "(functions between modules, such as flatten, have no name; MODULE:flatten does the same)"
    )


def _module(name: str, modules: Mapping[str, Any]) -> str:
    """Return the module that a name is, or leads into.

    The result is "" if there is none.
    """
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name
