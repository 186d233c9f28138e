"""Turn a sweep's config into cells and trials.

A sweep asks: which level of a factor (features, prompt, imputation) is better, for which models?

    models    name -> a training config, and `tune`, the axes of its hyper-parameters; `compare`
              and `search` of its own, if it has any
    compare   factor -> level -> the changes of the config that make it
    seeds     the first tunes, all repeat what was chosen

A *cell* is a model at one level of each factor. Within a cell hyper-parameters are tuned on the
validation split; the chosen point is repeated over the seeds, and its test split read. So every
cell gets the same chance, and nothing is tuned on the split that is reported.
"""

import hashlib
import itertools
import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from mmjax.core.errors import InputError
from mmjax.core.names import choice, suggestion
from mmjax.recommenders import registry
from mmjax.training import settings

Config = dict[str, Any]
Point = dict[str, Any]  # dotted key of a training config -> value


class Range(NamedTuple):
    """Axis of numbers between two ends, for `random` and `tpe`."""

    low: float
    high: float
    log: bool
    integer: bool

    def draw(self, rng: np.random.Generator) -> float | int:
        if self.log:
            value = float(np.exp(rng.uniform(np.log(self.low), np.log(self.high))))
            return round(value) if self.integer else value
        if self.integer:
            return int(rng.integers(int(self.low), int(self.high + 1)))
        return float(rng.uniform(self.low, self.high))


Axis = tuple[Any, ...] | Range


class Cell(NamedTuple):
    """Model at one level of each factor.

    Each cell gets a choice of its own.
    """

    name: str  # "vbpr features=real"
    model: str
    levels: dict[str, str]  # factor -> level
    config: Config
    axes: dict[str, Axis]  # by dotted key
    search: str  # grid, random or tpe


class Trial(NamedTuple):
    """One training run: a point of a cell and a seed."""

    id: str  # digest of the resolved config and of the content it names
    cell: str
    point: Point
    config: Config

    @property
    def seed(self) -> int:
        return self.config["seed"]


def cells(sweep: Config) -> list[Cell]:
    """Return all cells of a sweep, models outermost.

    Raises:
      InputError: an axis that names no key of its config or has no values, two axes on one key, a
        range in a grid.
    """
    if not sweep["seeds"]:
        raise InputError("seeds=(): a sweep needs at least one seed")
    if not sweep["models"]:
        raise InputError("the sweep names no model")
    all_cells = []
    for model, entry in sweep["models"].items():
        factors = entry.get("compare", sweep["compare"])
        base = entry["config"] | {"seed": sweep["seeds"][0]}
        if sweep["dataset"]:
            base["dataset"] = sweep["dataset"]
        search = entry.get("search", sweep["search"])
        choice("search", search, ("grid", "random", "tpe"))
        axes = _axes(model, entry.get("tune", {}), base, search)
        for levels in itertools.product(*(values.items() for values in factors.values())):
            config, taken = base, dict.fromkeys(axes, "tune") | {"seed": "seeds"}
            for factor, (_, changes) in zip(factors, levels, strict=True):
                for key, value in settings.flatten(changes).items():
                    if key in taken:
                        raise InputError(
                            f"{model}: {key} is changed by {taken[key]} and by compare.{factor}; "
                            "an axis may have one key, a key one axis"
                        )
                    taken[key] = f"compare.{factor}"
                    config = changed(config, {_known(model, key, config): value})
            names = {factor: name for factor, (name, _) in zip(factors, levels, strict=True)}
            label = " ".join([model, *(f"{factor}={level}" for factor, level in names.items())])
            all_cells.append(Cell(label, model, names, config, axes, search))
    return all_cells


def _axes(model: str, tune: Mapping[str, Any], base: Config, search: str) -> dict[str, Axis]:
    """Return the axes of `tune` by dotted key.

    `tune` is nested as the config is.
    """
    axes: dict[str, Axis] = {}

    def walk(tree: Mapping[str, Any], prefix: str) -> None:
        for name, value in tree.items():
            key = prefix + name
            if isinstance(value, Mapping) and not {"low", "high"} <= value.keys():
                walk(value, f"{key}.")
                continue
            _known(model, key, base)
            if key == "seed":
                raise InputError(f"{model}: seed is tuned and repeated; leave it to seeds")
            if isinstance(value, Mapping):
                axes[key] = Range(**{"log": False, "integer": False, **value})
                if search == "grid":
                    raise InputError(f"{model}: {key} is a range; a grid needs its values")
            elif isinstance(value, list | tuple) and value:
                axes[key] = tuple(value)
            else:
                raise InputError(f"{model}: axis {key} is {value!r}, not a tuple of values")

    walk(tune, "")
    return axes


def _known(model: str, key: str, config: Config) -> str:
    """Return the key if it is known, or raise InputError.

    A key of the config is known, and an option of its recommender.
    """
    known = list(settings.flatten(config))
    group, _, option = key.partition(".")
    if key in known or key in config or (group == "model" and option in config["model"]):
        return key
    if group == "model" and "." not in option:
        registry.split_options(
            registry.find(config["recommender"]), config["model"] | {option: None}
        )
        return key
    raise InputError(f"{model}: the config has no {key!r}{suggestion(key, known)}")


def changed(config: Config, point: Point) -> Config:
    """Return a config with the values of a point, by dotted keys.

    The given config is not changed.
    """
    for key, value in point.items():
        group, _, rest = key.partition(".")
        config = {**config, group: changed(config[group], {rest: value}) if rest else value}
    return config


def grid(cell: Cell) -> list[Point]:
    """Return every combination of the axes' values, the last axis fastest."""
    names = list(cell.axes)
    return [
        dict(zip(names, values, strict=True)) for values in itertools.product(*cell.axes.values())
    ]


def drawn(cell: Cell, count: int, seed: int) -> list[Point]:
    """Draw `count` random points.

    They are the same for all cells of a model, so that only the level differs between cells.
    """
    rng = np.random.default_rng([seed, zlib.crc32(cell.model.encode())])
    return [{name: _draw(axis, rng) for name, axis in cell.axes.items()} for _ in range(count)]


def _draw(axis: Axis, rng: np.random.Generator) -> Any:
    return axis.draw(rng) if isinstance(axis, Range) else axis[rng.integers(len(axis))]


def trial(cell: Cell, point: Point, seed: int, hashes: Callable[[Config], Any]) -> Trial:
    """Return the trial of a point.

    Args:
      hashes: returns the content that a config names, as JSON.
    """
    config = changed(cell.config, point | {"seed": seed})
    identity = {
        key: value for key, value in settings.plain(config).items() if key not in settings.PLACES
    }
    text = json.dumps([identity, hashes(config)], sort_keys=True)
    # The point as the ledger's JSON returns it, so that the two compare equal.
    return Trial(
        hashlib.sha256(text.encode()).hexdigest()[:12], cell.name, settings.plain(point), config
    )


def program(config: Config) -> tuple[str, dict[str, float]]:
    """Split a config into its shared and its traced part.

    Returns:
      What trials of one program share, as text, and what may differ between them.
    """
    recommender = registry.find(config["recommender"])
    _, traced = registry.split_options(recommender, config["model"])
    varying = {"lr": config["lr"], "seed": config["seed"], **traced}
    if not hasattr(recommender, "loss"):  # it has no traced values and is not trained
        varying = {}
    model = {name: value for name, value in config["model"].items() if name not in varying}
    shared = {key: value for key, value in config.items() if key not in varying} | {"model": model}
    return json.dumps(shared, sort_keys=True, default=str), varying
