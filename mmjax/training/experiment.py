"""Build the catalogue, features, trials and tasks of a config."""

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
    """Build the ensemble of trials that a config describes.

    Args:
      stores: the feature stores by name, or several sets of them.
      points: one for each trial: its values of `lr`, `seed` and the options of the recommender's
        `loss`, where they differ from the config.
      variant: the index of each trial's set of stores, where there are several sets.
      put: or `meshes.plan`: see `assembly.build`.
    """
    grid = meshes.make(config["mesh"])
    recommender = registry.find(config["recommender"])
    options, _ = registry.split_options(recommender, config["model"])
    settings = ensemble.Settings(
        **{name: config[name] for name in ("batch_size", "sampler", "optimizer", "part_steps")},
        lr_decay=tuple(config["lr_decay"]),
    )
    store_sets = [stores] if isinstance(stores, Mapping) else stores
    shared = len(store_sets) == 1 and table_sharding.shard_count(grid) > 1
    return assembly.build(
        recommender,
        [catalog(config, data, store_set, grid, shared) for store_set in store_sets],
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
    """Return the seeds and hyper-parameters of points for `assembly.build`."""
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
    """Build the catalogue that a recommender sees of a dataset.

    With a single device, features go from disk straight to it, at once. If several devices share
    the rows (`shared`), they go straight to the devices when they are asked for. Otherwise they are
    NumPy arrays on the host.

    Graphs of the features are kept in the dataset's folder, under derived/.
    """
    dtype = jnp.dtype(choice("features_dtype", config["features_dtype"], ("float32", "bfloat16")))
    sharding = meshes.replicated(grid) if grid.size == 1 else None
    rows, present = {}, {}
    for name, opened in stores.items():
        if shared:
            rows[name], present[name] = opened.unread(dtype), opened.mask()
        else:
            rows[name], present[name] = opened.read(sharding, dtype)
    return base.Catalog.of(
        data, rows, present, str(storage.path(config["dataset"]) / "derived"), grid
    )


def features(config: settings.Config, data: datasets.Dataset) -> dict[str, store.Store]:
    """Open the feature stores of `config.features`, in item order.

    The text is "visual=STORE,textual=STORE", or "auto" for all stores under the dataset's own
    features/, images before texts (see `modality.ordered`).

    Raises:
      InputError: with "auto", the folder holds no features.
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
    expected: dict[str, Any] = {"item_hash": data.item_hash(), "n_items": data.n_items}
    return {name: store.open_store(url, **expected) for name, url in pairs.items()}


def tasks(
    config: settings.Config, data: datasets.Dataset, splits: Sequence[str] = ("valid", "test")
) -> protocols.Tasks:
    """Return the ranking tasks of the splits under the config's protocol."""
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
