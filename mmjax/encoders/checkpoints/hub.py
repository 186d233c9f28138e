"""Load checkpoints into nnx modules through one key map.

A key map is a list of `Rule`s. The first rule whose pattern matches the whole of a checkpoint's
name says which parameter it fills. A name that no rule knows, a parameter that no name fills and
a shape that differs are collected and raised in one error: nothing is ignored silently.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from mmjax.core.errors import InputError

# Towers import everything about checkpoints from this module, so it re-exports `locate`.
from mmjax.encoders.checkpoints.locate import PACKAGED as PACKAGED
from mmjax.encoders.checkpoints.locate import Checkpoint as Checkpoint
from mmjax.encoders.checkpoints.locate import find as find
from mmjax.encoders.checkpoints.locate import settings as settings
from mmjax.encoders.checkpoints.weights import Stored, tensors


class Rule(NamedTuple):
    """Mapping from checkpoint names to a module parameter.

    `pattern` must match the whole name. `path` is its `re` replacement; None ignores the tensor.
    Rules of the same pattern all apply: each takes its part of the tensor. A path such as
    `blocks[3].mlp.up.kernel` is the fourth layer of the stacked parameter `blocks.mlp.up.kernel`.
    """

    pattern: str
    path: str | None
    transform: Callable[[np.ndarray], np.ndarray] = lambda array: array


def transpose(array: np.ndarray) -> np.ndarray:
    """Turn torch's Linear weight [out, in] into flax's kernel [in, out]."""
    return array.T


def channels_last(array: np.ndarray) -> np.ndarray:
    """Turn torch's convolution weight into flax's kernel.

    torch has [O, I / groups, *window], flax [*window, I / groups, O].
    """
    return array.transpose(*range(2, array.ndim), 1, 0)


def linear(source: str, target: str) -> list[Rule]:
    """Return the two rules of a Linear.

    Args:
      source: checkpoint name without its last part, as a pattern.
      target: parameter path without its last part.
    """
    return [
        Rule(rf"{source}\.weight", rf"{target}.kernel", transpose),
        Rule(rf"{source}\.bias", rf"{target}.bias"),
    ]


def fused(source: str, targets: Sequence[str], widths: Sequence[int] | None = None) -> list[Rule]:
    """Return the rules that split one fused Linear into several.

    Its outputs are those of several Linears, such as queries, keys and values.

    Args:
      widths: number of outputs of each target; equal shares if None.
    """
    cuts = len(targets) if widths is None else np.cumsum(widths)[:-1]

    def part(n: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda array: np.split(array, cuts)[n].T

    return [
        Rule(rf"{source}\.{theirs}", f"{target}.{ours}", part(n))
        for theirs, ours in (("weight", "kernel"), ("bias", "bias"))
        for n, target in enumerate(targets)
    ]


def layer_norm(source: str, target: str) -> list[Rule]:
    """Return the two rules of a LayerNorm.

    Old checkpoints call its parameters gamma and beta.
    """
    return [
        Rule(rf"{source}\.(?:weight|gamma)", rf"{target}.scale"),
        Rule(rf"{source}\.(?:bias|beta)", rf"{target}.bias"),
    ]


def conv(source: str, target: str) -> list[Rule]:
    """Return the two rules of a convolution (Conv1d, 2d, 3d; any groups)."""
    return [
        Rule(rf"{source}\.weight", rf"{target}.kernel", channels_last),
        Rule(rf"{source}\.bias", rf"{target}.bias"),
    ]


def patches(source: str, target: str) -> list[Rule]:
    """Return the two rules of a patch convolution, for `layers.Patches`.

    The stride of such a convolution is its window.
    """
    return [
        Rule(
            rf"{source}\.weight",
            rf"{target}.project.kernel",
            lambda array: channels_last(array).reshape(-1, len(array)),
        ),
        Rule(rf"{source}\.bias", rf"{target}.project.bias"),
    ]


def batch_norm(source: str, target: str) -> list[Rule]:
    """Return the rules of a BatchNorm, for `layers.BatchNorm` or nnx's."""
    return [
        Rule(rf"{source}\.weight", rf"{target}.scale"),
        Rule(rf"{source}\.bias", rf"{target}.bias"),
        Rule(rf"{source}\.running_mean", rf"{target}.mean"),
        Rule(rf"{source}\.running_var", rf"{target}.var"),
        Rule(rf"{source}\.num_batches_tracked", None),
    ]


def embedding(source: str, target: str) -> list[Rule]:
    """Return the one rule of an Embedding."""
    return [Rule(rf"{source}\.weight", rf"{target}.table")]


def read_config(folder: Path, model_types: Sequence[str] = ()) -> dict[str, Any]:
    """Read a checkpoint's config.json unchanged.

    Raises:
      InputError: missing, no JSON, or of an architecture other than `model_types`.
    """
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{folder} is no checkpoint folder (no config.json)") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} is no JSON object")
    if model_types and config.get("model_type") not in model_types:
        raise InputError(
            f"{path} is of a {config.get('model_type')!r} model, not of {' or '.join(model_types)}"
        )
    return config


def load_weights(
    source: Path,
    key_map: Sequence[Rule],
    expected: dict[str, tuple[int, ...]],
    dtype: Any = np.float32,
) -> dict[str, Stored]:
    """Return the tensors of a checkpoint by parameter name.

    Args:
      source: a folder or a file.
      expected: parameter name -> shape.

    Raises:
      InputError: no or damaged files, or any unmapped, missing, misshapen or doubly filled name;
        all of them in one sentence.
    """
    rules = [(re.compile(rule.pattern), rule) for rule in key_map]
    arrays: dict[str, dict[int, np.ndarray]] = {path: {} for path in expected}  # by layer
    filled_by: dict[tuple[str, int], str] = {}
    stacks: set[str] = set()
    faults: list[str] = []
    for name, read in tensors(Path(source)):
        matches = [(m, rule) for pattern, rule in rules if (m := pattern.fullmatch(name))]
        if not matches:
            faults.append(f"{name} is not in the key map")
            continue
        first = matches[0][1]
        for match, rule in matches:
            if first.path is None or rule.path is None or rule.pattern != first.pattern:
                continue
            path, layer, stacked = _layer_of(match.expand(rule.path))
            if stacked:
                stacks.add(path)
            if path not in expected or (stacked and layer >= expected[path][0]):
                faults.append(f"{name} maps to {path}, which the model does not have")
            elif (path, layer) in filled_by:
                faults.append(f"{name} and {filled_by[path, layer]} both map to {path}")
            else:
                filled_by[path, layer], value = name, rule.transform(read())
                needs = tuple(expected[path][stacked:])
                if value.shape != needs:
                    faults.append(f"{name} is {value.shape}, {path} needs {needs}")
                arrays[path][layer] = value
    for path, parts in arrays.items():
        lacking = set(range(expected[path][0] if path in stacks else 1)) - parts.keys()
        if lacking:
            where = f" of layer {min(lacking)}" if parts else ""
            faults.append(f"nothing fills {path}{where}")
    if faults:
        shown = "; ".join(faults[:12]) + (f"; and {len(faults) - 12} more" * (len(faults) > 12))
        raise InputError(f"{source} does not fit the model: {shown}")
    return {
        path: Stored([parts[n] for n in sorted(parts)], dtype, stacked=path in stacks)
        for path, parts in arrays.items()
    }


def load_module(
    build: Callable[[], nnx.Module],
    source: Path,
    key_map: Sequence[Rule],
    dtype: Any = np.float32,
    *,
    lazy: bool = False,
    then: Callable[[str], Callable[[Any], Any] | None] = lambda name: None,
) -> tuple[nnx.GraphDef, Any]:
    """Build a module and fill it with a checkpoint's weights.

    The module is built abstractly, so nothing is initialised at random only to be replaced.

    Args:
      lazy: give `weights.Stored`, which read the file when indexed, instead of arrays.
      then: parameter name -> function applied to the parameter once it lies on devices, or None;
        for lazy arrays.

    Returns:
      The graph definition and the state, a pure dict of NumPy arrays in `dtype` (or of
      `weights.Stored`) until the caller places them.

    Raises:
      InputError: what `load_weights` raises.
    """
    graph, state = nnx.split(nnx.eval_shape(build))
    leaves, tree = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(state))
    names = [".".join(str(step.key) for step in path) for path, _ in leaves]
    shapes = {name: leaf.shape for name, (_, leaf) in zip(names, leaves, strict=True)}
    stored = load_weights(source, key_map, shapes, dtype)
    for name in names:
        stored[name].then = then(name)
    arrays = [stored[name] if lazy else np.asarray(stored[name]) for name in names]
    return graph, jax.tree.unflatten(tree, arrays)


def merge(graph: nnx.GraphDef, params: Any) -> Any:
    """Rebuild the module from what `load_module` returned.

    Works inside and outside a jitted function.
    """
    return nnx.merge(graph, nnx.State(params))


def has(source: Path, pattern: str) -> bool:
    """Return True if a tensor's whole name matches `pattern`.

    For optional parts of a checkpoint.
    """
    return any(re.fullmatch(pattern, name) for name, _ in tensors(Path(source)))


def tokenizer(folder: Path) -> Any:
    """Load the checkpoint's fast tokenizer.

    Raises:
      InputError: the folder has none that transformers can read.
    """
    # Only tokenizers are used here, so its advice to install torch would mislead.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # A class may be a slow one or ask for sentencepiece (SigLIP's); tokenizer.json needs neither.
    kinds: list[Any] = [AutoTokenizer, PreTrainedTokenizerFast]
    why = "it is a slow one, and there is no tokenizer.json"
    for kind in kinds if (Path(folder) / "tokenizer.json").exists() else kinds[:1]:
        try:
            tokens = kind.from_pretrained(str(folder), local_files_only=True)
        except (ImportError, OSError, ValueError, KeyError) as error:
            why = _one_line(error)
            continue
        if tokens.is_fast:
            return tokens
    raise InputError(f"{folder} has no usable tokenizer: {why}")


def _layer_of(path: str) -> tuple[str, int, bool]:
    """Split a path into parameter name, layer and a stacked flag.

    `blocks[3].up.kernel` gives `blocks.up.kernel`, 3 and True.
    """
    match = re.fullmatch(r"(.*)\[(\d+)\](.*)", path)
    return (match[1] + match[3], int(match[2]), True) if match else (path, 0, False)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
