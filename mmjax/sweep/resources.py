"""Datasets and stores of a sweep, each opened once.

`Resources.resolve` finds the cells that they allow.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax import store
from mmjax.core import storage
from mmjax.core.errors import InputError
from mmjax.data import dataset as datasets
from mmjax.features import expressions
from mmjax.sweep import space
from mmjax.training import experiment, settings


class Resources:
    """Datasets and stores that configs name, opened once and cached."""

    def __init__(self, sweep: Mapping[str, Any]):
        """Keep the sweep's `stores`, `features` and `datasets`.

        See configs/common.py.
        """
        self._stores, self._all = sweep["stores"], sweep["features"]
        self._folders = expressions.pairs(sweep["datasets"])
        self._data: dict[str, datasets.Dataset] = {}
        self._features: dict[tuple[str, str], dict[str, store.Store]] = {}

    def open(self, config: space.Config) -> tuple[datasets.Dataset, dict[str, store.Store]]:
        """Return the dataset and the stores of a config."""
        data, key = self.dataset(config), (config["dataset"], config["features"])
        if key not in self._features:
            self._features[key] = experiment.features(config, data)
        return data, self._features[key]

    def dataset(self, config: space.Config) -> datasets.Dataset:
        folder = settings.required(config, "dataset")
        if folder not in self._data:
            self._data[folder] = datasets.load(folder)
        return self._data[folder]

    def hashes(self, config: space.Config) -> dict[str, Any]:
        """Return content hashes of a config's interactions and modalities."""
        data, stores = self.open(config)
        feature_hashes = {name: opened.manifest["content_hash"] for name, opened in stores.items()}
        return {"data": data.interaction_hash(), "features": feature_hashes}

    def shapes(self, config: space.Config) -> dict[str, tuple[int, ...]]:
        """Return the shape of each modality that a config names."""
        return {name: opened.shape for name, opened in self.open(config)[1].items()}

    def data_hashes(self) -> dict[str, str]:
        """Return the interactions' hash of each opened dataset, by folder."""
        return {folder: data.interaction_hash() for folder, data in self._data.items()}

    def resolve(self, cells: list[space.Cell]) -> tuple[list[space.Cell], dict[str, str]]:
        """Replace names in cells by folders, and make derived stores.

        Returns:
          The cells that have their dataset and stores; and of each other cell the name of what it
          lacks.

        Raises:
          InputError: no cell is left, or what `expressions.resolve` raises.
        """
        ready, without = [], {}
        for cell in cells:
            name = settings.required(cell.config, "dataset")
            if name not in self._folders and "/" not in name and not Path(name).exists():
                without[cell.name] = name
                continue
            cell = cell._replace(config=cell.config | {"dataset": self._folders.get(name, name)})
            data, text = self.dataset(cell.config), cell.config["features"]
            if not text:
                ready.append(cell)
                continue
            folder = storage.path(cell.config["dataset"])
            stores = expressions.named(self._stores, folder)
            all_features = self._all or ",".join(f"{name}={name}" for name in stores)
            if text == "auto" or text.startswith("*"):
                text = expressions.marked(all_features, text.removeprefix("auto").removeprefix("*"))
            if not text:
                without[cell.name] = "features"
                continue
            lacking = expressions.lacking(text, stores)
            if lacking:
                without[cell.name] = lacking[0]
                continue
            features = expressions.resolve(text, stores, data, folder / "derived" / "stores")
            ready.append(cell._replace(config=cell.config | {"features": features}))
        if not ready:
            name, missing = next(iter(without.items()))
            raise InputError(
                f"no cell has its stores; {name} lacks {missing!r}: extract it, or name it by "
                "--config.stores=NAME=STORE,... (a dataset by --config.datasets)"
            )
        return ready, without
