"""Small prepared worlds for tests that need a folder on disk."""

from pathlib import Path

import numpy as np

from mmjax import store
from mmjax.core import files
from mmjax.data import dataset
from mmjax.data.prepare import prepare
from mmjax.data.synthetic import world


def small(folder: Path, *, users=200, items=100, interactions=4000, features=True) -> Path:
    """A prepared world with its true attributes, one-hot, as the stores visual and textual."""
    raw = world.generate(users=users, items=items, interactions=interactions, seed=2)
    data = prepare(raw, name="small", keep_items="all")
    with files.atomic_folder(folder) as aside:
        dataset.save(data, aside)
    if features:
        hot = []
        for values in data.attributes.values():
            names, place = np.unique(values, return_inverse=True)
            hot.append(np.eye(len(names), dtype=np.float32)[place])
        for name, part in (("visual", hot[:2]), ("textual", hot[2:])):
            url = str(folder / "features" / name)
            store.write_array(url, np.hstack(part), item_ids=data.item_ids, encoder="truth")
    return folder
