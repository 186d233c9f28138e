"""Check a config and the run that a workdir belongs to."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.core import files
from mmjax.core.errors import InputError
from mmjax.core.names import suggestion
from mmjax.data import dataset as datasets
from mmjax.evaluation import metrics
from mmjax.evaluation import protocol as protocols
from mmjax.store.read import Store

Config = Mapping[str, Any]
# Where a run is stored and how it executes. These are no part of its identity, so a run may resume
# with other values.
PLACES = ("dataset", "features", "mesh", "checkpoint_seconds", "part_steps")


def required(config: Config, key: str) -> Any:
    """Return a config value that has no default.

    Raises:
      InputError: the value was not given.
    """
    if config[key] in (None, ""):
        raise InputError(f"give --config.{key}=...")
    return config[key]


def check(config: Config) -> None:
    """Check the config for values that no run could use.

    It runs before anything is read or written.

    Raises:
      InputError: there is such a value.
    """
    smallest = {"epochs": 0, "patience": 0, "eval_every": 1, "batch_size": 1, "part_steps": 0}
    for key, least in smallest.items():
        if config[key] < least:
            raise InputError(f"{key}={config[key]} must be at least {least}")
    if not config["cutoffs"] or min(config["cutoffs"]) < 1:
        raise InputError(f"cutoffs={tuple(config['cutoffs'])} must be list lengths of at least 1")
    measured = [f"{name}@{k}" for name in metrics.ACCURACY for k in config["cutoffs"]]
    if config["metric"] not in measured:
        hint = suggestion(config["metric"], measured)
        raise InputError(f"metric {config['metric']!r} is not measured{hint}")
    protocols.find(config["protocol"], config["threshold"])


def identity(config: Config, data: datasets.Dataset, stores: Mapping[str, Store]) -> dict[str, Any]:
    """Return the config and the hashes of its data and features.

    These identify a run.
    """
    contents = {name: opened.manifest["content_hash"] for name, opened in stores.items()}
    return plain(config) | {"data_hash": data.interaction_hash(), "features_hash": contents}


def verify(workdir: Path, mine: dict[str, Any]) -> None:
    """Check that a workdir is new or has this identity.

    Raises:
      InputError: it belongs to another run; the first difference outside `PLACES` is named.
    """
    path = workdir / "config.json"
    if not files.exists(path):
        return
    theirs, ours = flatten(files.read_json(path)), flatten(mine)
    for key in sorted((theirs.keys() | ours.keys()) - set(PLACES)):
        if theirs.get(key) != ours.get(key):
            raise InputError(
                f"{workdir} belongs to another config: {key} is {theirs.get(key)!r} there and "
                f"{ours.get(key)!r} here; choose another --workdir or delete it"
            )


def plain(config: Config) -> dict[str, Any]:
    """Return a config as JSON values."""
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    return json.loads(json.dumps(dict(config)))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to one with dotted keys."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, Mapping)
        out |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return out
