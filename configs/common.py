"""Build training and sweep configs with default fields."""

import copy
import importlib
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict


def base(recommender: str, **model) -> ConfigDict:
    """Return a config for one recommender, with default fields.

    `model` holds its options. The defaults are MMRec's batch size and optimiser, with protocol
    `strict`.
    """
    return ConfigDict(
        {
            "dataset": "",  # a prepared folder
            "recommender": recommender,  # a module of mmjax.recommenders, or my_package.my_model
            "model": model,
            "features": "",  # NAME=STORE,NAME=STORE or auto
            "features_dtype": "float32",  # bfloat16: half the bytes, products summed in float32
            "protocol": "strict",  # strict | mmrec | elliot
            "threshold": 0.0,  # held-out ratings below it are not relevant
            "cutoffs": (5, 10, 20, 50),
            "metric": "recall@20",  # chooses the epoch, on valid
            "epochs": 200,
            "patience": 20,  # evaluations without improvement before it stops; 0 never stops
            "eval_every": 1,
            "batch_size": 2048,
            "lr": 1e-3,
            "lr_decay": (1.0, 50.0),
            "optimizer": "scale_by_adam()",
            "sampler": "interactions",  # interactions | users
            "seed": 0,
            "mesh": "data=-1",
            "checkpoint_seconds": 30.0,
            "part_steps": 0,  # an epoch can be saved after every so many steps; 0: at its end only
        }
    )


def elliot(config: ConfigDict) -> ConfigDict:
    """Set the training loop of Elliot's multimodal forks.

    200 epochs (the default), valid every 10, batch 1024, seed 123, no early stopping.
    """
    config.update(
        {
            "protocol": "elliot",
            "batch_size": 1024,
            "eval_every": 10,
            "patience": 0,
            "seed": 123,
        }
    )
    return config


def mmrec(config: ConfigDict) -> ConfigDict:
    """Set the training loop of MMRec.

    Up to 1000 epochs, valid after each, patience 20, seed 999.
    """
    config.update({"protocol": "mmrec", "epochs": 1000, "patience": 20, "seed": 999})
    return config


def preset(name: str | None, **presets: ConfigDict) -> ConfigDict:
    """Return the variant that `--config=FILE.py:NAME` asks for.

    It is the first one when no name is given.

    Raises:
      ValueError: there is no such variant.
    """
    if not name:
        return next(iter(presets.values()))
    if name not in presets:
        raise ValueError(f"no preset {name!r}; there are {', '.join(presets)}")
    return presets[name]


# Sweeps: see `mmjax.sweep.space` for what the fields mean.


def sweep(models: dict[str, Any], **fields: Any) -> ConfigDict:
    """Return the config of a sweep over `models`.

    Each model is a `study`; `fields` replace those of the default below.

    Raises:
      ValueError: a field is unknown.
    """
    default = {
        "dataset": "",  # a prepared folder
        "datasets": "",  # NAME=DIR,NAME=DIR: those that a level names
        "features": "",  # MODALITY=STORE,... that `*` stands for; empty for all the stores
        "stores": "",  # NAME=STORE,NAME=STORE; empty for those under the dataset's features/
        "compare": {},  # factor -> level -> changes of the config
        "seeds": (0,),  # the first tunes, all repeat what was chosen
        "search": "grid",  # grid | random | tpe
        "trials": 30,  # of random and tpe, for each cell
        "batch": 10,  # tpe: points asked for at a time
        "search_seed": 0,
    }
    unknown = fields.keys() - default.keys()
    if unknown:
        raise ValueError(f"a sweep has no {unknown}; it has {', '.join(default)}")
    return ConfigDict({"models": models, **default, **fields})


def study(name: str, tune: dict[str, Any] | None = None, **change: Any) -> dict[str, Any]:
    """Return a model of a sweep: its config and its axes.

    Args:
      name: "NAME" or "NAME:preset", of `configs/NAME.py`.
      tune: the axes of its hyper-parameters, nested as the config is.
      change: parts of the config to change. `compare={}` takes the model out of the sweep's
        comparison: one that reads no features, say; `search` searches it in another way.

    Raises:
      ValueError: the config has no such part.
    """
    module, _, arg = name.partition(":")
    config = importlib.import_module(f"configs.{module}").get_config(arg)
    overrides = {key: change.pop(key) for key in ("compare", "search") if key in change}
    unknown = change.keys() - config.keys()
    if unknown:
        raise ValueError(f"configs/{module}.py has no {unknown}")
    config.update(change)
    # A copy: otherwise an override of an axis that two models share would change both.
    return copy.deepcopy({"config": config.to_dict(), "tune": tune or {}, **overrides})


def levels(features: dict[str, str]) -> dict[str, Any]:
    """Return levels that differ in the features they read.

    `features` maps a level's name to "MODALITY=STORE,..."; see `features.derived`.
    """
    return {name: {"features": text} for name, text in features.items()}


def controls(kinds: Sequence[str]) -> dict[str, Any]:
    """Return levels: the sweep's features, and each control of them.

    See `features.controls`.
    """
    return levels({"real": "*"} | {kind: f"*~{kind}" for kind in kinds})


def between(low: float, high: float, *, log: bool = False, integer: bool = False) -> dict[str, Any]:
    """Return an axis of numbers, for random search and TPE."""
    return {"low": low, "high": high, "log": log, "integer": integer}
