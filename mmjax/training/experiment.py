"""From a config to what it names: the claimed workdir, the catalogue, the ensemble, the tasks."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from mmjax import store
from mmjax.core import files, storage
from mmjax.core.errors import InputError
from mmjax.data import dataset as datasets
from mmjax.evaluation import metrics
from mmjax.evaluation import protocol as protocols
from mmjax.features import expressions
from mmjax.parallel import mesh as meshes
from mmjax.parallel import table_sharding
from mmjax.recommenders import base
from mmjax.training import assembly, ensemble

Config = Mapping[str, Any]
Tasks = dict[str, protocols.Task]  # by split
# Where a run lies and how it is done: no part of what it is, so it may go on with others.
PLACES = ("dataset", "features", "mesh", "checkpoint_seconds", "part_steps")


def required(config: Config, key: str) -> Any:
    """A value that has no default; InputError when it was not given."""
    if config[key] in (None, ""):
        raise InputError(f"give --config.{key}=...")
    return config[key]


def check(config: Config) -> None:
    """Raises InputError for a value that no run could use, before anything is read or written."""
    smallest = {"epochs": 0, "patience": 0, "eval_every": 1, "batch_size": 1, "part_steps": 0}
    for key, least in smallest.items():
        if config[key] < least:
            raise InputError(f"{key}={config[key]} must be at least {least}")
    if not config["cutoffs"] or min(config["cutoffs"]) < 1:
        raise InputError(f"cutoffs={tuple(config['cutoffs'])} must be list lengths of at least 1")
    measured = [f"{name}@{k}" for name in metrics.ACCURACY for k in config["cutoffs"]]
    if config["metric"] not in measured:
        hint = base.suggestion(config["metric"], measured)
        raise InputError(f"metric {config['metric']!r} is not measured{hint}")
    protocols.find(config["protocol"], config["threshold"])


def identity(
    config: Config, data: datasets.Dataset, stores: Mapping[str, store.Store]
) -> dict[str, Any]:
    """What a run is: its config, and the content of what the config names."""
    contents = {name: opened.manifest["content_hash"] for name, opened in stores.items()}
    return plain(config) | {"data_hash": data.interaction_hash(), "features_hash": contents}


def verify(workdir: Path, mine: dict[str, Any]) -> None:
    """Checks that a workdir is new or belongs to the run of this identity.

    Raises:
      InputError: it belongs to another; the first difference is named.
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
    """A config as JSON values."""
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    return json.loads(json.dumps(dict(config)))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, Mapping)
        out |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return out


def trials(
    config: Config,
    data: datasets.Dataset,
    stores: Mapping[str, store.Store] | Sequence[Mapping[str, store.Store]],
    points: Sequence[Mapping[str, float]] = ({},),
    variant: Sequence[int] | None = None,
    put: meshes.Put = meshes.put,
) -> ensemble.Ensemble:
    """The ensemble that a config describes: a trial for each point, which is what differs in it of
    `lr`, `seed` and the options of the recommender's `loss`; and where there are several sets of
    stores, `variant` says which is whose. `put` may be `meshes.plan`: see `assembly.build`."""
    grid = meshes.make(config["mesh"])
    recommender = base.find(config["recommender"])
    options, _ = base.split_options(recommender, config["model"])
    settings = ensemble.Settings(
        **{name: config[name] for name in ("batch_size", "sampler", "optimizer", "part_steps")},
        lr_decay=tuple(config["lr_decay"]),
    )
    every = [stores] if isinstance(stores, Mapping) else stores
    shared = len(every) == 1 and table_sharding.pieces(grid) > 1
    return assembly.build(
        recommender,
        [catalog(config, data, each, grid, shared) for each in every],
        options,
        **seeds_and_hypers(config, points),
        settings=settings,
        mesh=grid,
        variant=variant,
        put=put,
    )


def seeds_and_hypers(config: Config, points: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Seeds and hyper-parameters of points, as an ensemble is given them."""
    _, traced = base.split_options(base.find(config["recommender"]), config["model"])
    values = {"lr": config["lr"], **traced}
    return {
        "seeds": [point.get("seed", config["seed"]) for point in points],
        "hypers": {name: [point.get(name, v) for point in points] for name, v in values.items()},
    }


def catalog(
    config: Config,
    data: datasets.Dataset,
    stores: Mapping[str, store.Store],
    grid: Mesh,
    shared: bool,
) -> base.Catalog:
    """What a recommender may know of a dataset; features go from disk straight to the devices, to
    one at once, to several that share their rows when they are asked for.

    Graphs of the features are kept in the dataset's folder, under derived/.
    """
    dtype = jnp.dtype(
        base.choice("features_dtype", config["features_dtype"], ("float32", "bfloat16"))
    )
    where = meshes.replicated(grid) if grid.size == 1 else None
    rows, present = {}, {}
    for name, opened in stores.items():
        if shared:
            rows[name], present[name] = opened.unread(dtype), opened.mask()
        else:
            rows[name], present[name] = opened.read(where, dtype)
    return base.Catalog.of(
        data, rows, present, str(storage.path(config["dataset"]) / "derived"), grid
    )


def features(config: Config, data: datasets.Dataset) -> dict[str, store.Store]:
    """Open the stores of `config.features`, every one of them in item order.

    "visual=STORE,textual=STORE", or "auto" for all under the dataset's own features/, images
    before texts, see `modality.ordered`.
    """
    text = config["features"]
    if text == "auto":
        pairs = expressions.named("", config["dataset"])
        if not pairs:
            raise InputError(
                f"{config['recommender']} needs item features and {config['dataset']}/features "
                f"holds none; run extract.py --dataset={config['dataset']} or give "
                "--config.features=NAME=STORE"
            )
    else:
        pairs = expressions.pairs(text)
    mine = {"item_hash": data.item_hash(), "n_items": data.n_items}
    return {name: store.open_store(url, **mine) for name, url in pairs.items()}


def tasks(
    config: Config, data: datasets.Dataset, splits: Sequence[str] = ("valid", "test")
) -> Tasks:
    """The ranking tasks of the splits under the config's protocol."""
    protocol = protocols.find(config["protocol"], config["threshold"])
    out = {}
    for split in splits:
        held_out = data.split(split)
        masked = [(data.train.user, data.train.item)]
        if split == "test" and protocol.mask_valid_at_test:
            masked.append((data.valid.user, data.valid.item))
        out[split] = protocols.build(
            protocol,
            held_out=(held_out.user, held_out.item),
            rating=held_out.rating,
            masked=masked,
            n_items=data.n_items,
            longest=max(config["cutoffs"]),
        )
    return out
