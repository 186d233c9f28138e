"""The tensors of a checkpoint on disk: safetensors or torch's files, whole or in shards."""

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from mmjax.encoders import pickled
from mmjax.errors import InputError

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
# What a checkpoint folder's weights are called; the first that is there is read.
SAFETENSORS = ("model.safetensors.index.json", "model.safetensors")
NAMES = (*SAFETENSORS, "pytorch_model.bin.index.json", "pytorch_model.bin")


def tensors(path: Path) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """Each tensor's name and how to read it, from a file or from all shards of a folder.

    Raises:
      InputError: a file is missing, damaged or holds what is no tensor.
    """
    for shard in _shards(path):
        if shard.suffix == ".safetensors":
            yield from _safetensors(shard)
        else:
            for name, view in pickled.read(shard).items():
                yield name, lambda view=view: np.array(view)


def digest(path: Path) -> str:
    """Tells one local checkpoint from another, fine-tuned one of the same shapes."""
    whole = hashlib.sha256()
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    for file in (file for file in files if file.suffix in SUFFIXES and file.is_file()):
        with open(file, "rb") as content:
            whole.update(hashlib.file_digest(content, "sha256").digest())
    return f"sha256:{whole.hexdigest()[:16]}"


def _shards(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    name = next((name for name in NAMES if (path / name).exists()), None)
    if name is None:
        raise InputError(
            f"{path} holds none of {', '.join(NAMES)}; name the file of weights itself"
        )
    if not name.endswith(".json"):
        return [path / name]
    try:
        shards = sorted(set(json.loads((path / name).read_text())["weight_map"].values()))
        shards = [path / shard for shard in shards]
    except (ValueError, KeyError, AttributeError, TypeError):
        raise InputError(f"{path / name} is no index of weights") from None
    for shard in shards:
        if not shard.exists():
            raise InputError(f"{shard} is missing; the index names it")
    return shards


def _safetensors(path: Path) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    try:
        file = safe_open(path, framework="numpy")
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from None

    def read(name: str) -> np.ndarray:
        try:
            return file.get_tensor(name)
        except (SafetensorError, AttributeError, TypeError) as error:  # such as a float8
            raise InputError(f"{path} has a {name} that cannot be read: {error}") from None

    for name in file.keys():  # noqa: SIM118 - not a mapping
        yield name, partial(read, name)
