"""The run of a config: its catalogue, features, trials and tasks."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from mmjax import store
from mmjax.core import storage
from mmjax.core.errors import InputError
from mmjax.core.names import choice
from mmjax.data import dataset as datasets
from mmjax.evaluation import protocol as protocols
from mmjax.features import expressions
from mmjax.parallel import mesh as meshes
from mmjax.parallel import table_sharding
from mmjax.recommenders import base, registry
from mmjax.training import assembly, ensemble, settings


def trials(
    config: settings.Config,
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
    recommender = registry.find(config["recommender"])
    options, _ = registry.split_options(recommender, config["model"])
    settings = ensemble.Settings(
        **{name: config[name] for name in ("batch_size", "sampler", "optimizer", "part_steps")},
        lr_decay=tuple(config["lr_decay"]),
    )
    every = [stores] if isinstance(stores, Mapping) else stores
    shared = len(every) == 1 and table_sharding.shard_count(grid) > 1
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


def seeds_and_hypers(
    config: settings.Config, points: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """Seeds and hyper-parameters of points, as an ensemble is given them."""
    _, traced = registry.split_options(registry.find(config["recommender"]), config["model"])
    values = {"lr": config["lr"], **traced}
    return {
        "seeds": [point.get("seed", config["seed"]) for point in points],
        "hypers": {name: [point.get(name, v) for point in points] for name, v in values.items()},
    }


def catalog(
    config: settings.Config,
    data: datasets.Dataset,
    stores: Mapping[str, store.Store],
    grid: Mesh,
    shared: bool,
) -> base.Catalog:
    """What a recommender may know of a dataset; features go from disk straight to the devices, to
    one at once, to several that share their rows when they are asked for.

    Graphs of the features are kept in the dataset's folder, under derived/.
    """
    dtype = jnp.dtype(choice("features_dtype", config["features_dtype"], ("float32", "bfloat16")))
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


def features(config: settings.Config, data: datasets.Dataset) -> dict[str, store.Store]:
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
    config: settings.Config, data: datasets.Dataset, splits: Sequence[str] = ("valid", "test")
) -> protocols.Tasks:
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
