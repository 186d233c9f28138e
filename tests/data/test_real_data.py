"""The sources on real data: the counts that its README gives. Skipped where it is absent."""

import time

import numpy as np
import pytest

from mmjax.core.errors import InputError
from mmjax.data import dataset, splits
from mmjax.data.prepare import prepare
from mmjax.data.sources import elliot, movielens


def folder(shared, name):
    if not (shared / "data" / name).is_dir():
        pytest.skip(f"no {name}")
    return shared / "data" / name


def test_movielens_with_posters(shared):
    data = prepare(movielens.read(folder(shared, "movielens100k-posters")), name="ml")
    numbers = data.statistics()
    assert (data.n_users, data.n_items, numbers["interactions"]) == (943, 1682, 100_000)
    assert numbers["items_without_image"] == 19
    assert numbers["items_without_text"] == 18
    assert data.titles[0] == "Toy Story (1995)"
    assert data.attributes["genres"][0] == "Animation|Children|Comedy"
    assert data.images[0].endswith("posters/1.jpg")


def test_baby_and_its_reload(shared, tmp_path):
    raw = elliot.read(folder(shared, "amazon2014-baby"))
    with pytest.raises(InputError, match=r"259 users .*--cold_users=drop"):
        prepare(raw, name="baby")
    data = prepare(raw, name="baby", cold_users="keep")
    assert (data.n_users, data.n_items) == (19_440, 6_386)
    assert [len(data.split(s).user) for s in dataset.SPLITS] == [83_416, 20_973, 34_432]
    dataset.save(data, tmp_path)
    start = time.perf_counter()
    again = dataset.load(tmp_path)
    print(f"reloaded in {time.perf_counter() - start:.3f} s")
    assert again.interaction_hash() == data.interaction_hash()
    assert again.item_ids == data.item_ids


def test_toys(shared):
    data = prepare(elliot.read(folder(shared, "amazon2014-toys")), name="toys")
    assert (data.n_users, data.n_items) == (19_412, 11_924)
    assert [len(data.split(s).user) for s in dataset.SPLITS] == [96_258, 31_017, 40_322]
    assert data.statistics()["items_without_text"] == 0


def test_our_random_split_counts_as_elliots_files_do(shared):
    """Allrecipes was split by Elliot's random_subsampling, 0.2 then 0.1: the counts agree."""
    raw = elliot.read(folder(shared, "allrecipes"))
    ours = splits.random_per_user(raw.user, 0, 0.2, 0.1)
    counts = [
        np.stack(
            [np.bincount(raw.user[labels == n], minlength=len(raw.user_ids)) for n in range(3)]
        )
        for labels in (ours, raw.split)
    ]
    differ = (counts[0] != counts[1]).any(axis=0).sum()
    assert differ <= 2  # of 18,092: a user whose files lost a row
