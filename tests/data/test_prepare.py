"""The steps from Raw to Dataset: order, ids, policies, and every way to be refused."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.core.errors import InputError
from mmjax.data import dataset
from mmjax.data.prepare import feature_rows, order_ids, prepare
from mmjax.data.raw import Raw


def make(rows, user_ids=None, item_ids=None, **columns):
    """A Raw from rows (user code, item code, rating, time)."""
    array = np.array(rows, np.int64).reshape(-1, len(rows[0]) if rows else 2)
    user_ids = user_ids or [str(n) for n in range(array[:, 0].max(initial=-1) + 1)]
    item_ids = item_ids or [str(n) for n in range(array[:, 1].max(initial=-1) + 1)]
    blank = [""] * len(item_ids)
    values = {
        "user": array[:, 0].astype(np.int32),
        "item": array[:, 1].astype(np.int32),
        "rating": array[:, 2].astype(np.float32)
        if array.shape[1] > 2
        else np.ones(len(rows), "f4"),
        "time": array[:, 3] if array.shape[1] > 3 else np.zeros(len(rows), np.int64),
        "split": None,
        "titles": [f"title {key}" for key in item_ids],
        "texts": blank,
        "images": blank,
        "audios": blank,
        **columns,
    }
    return Raw(user_ids=user_ids, item_ids=item_ids, **values)


def dense(users=6, items=8):
    return [(u, i, 1 + (u + i) % 5, 100 * u + i + 1) for u in range(users) for i in range(items)]


def rows_of(data):
    return [
        (data.user_ids[u], data.item_ids[i], r, t, name)
        for name in dataset.SPLITS
        for u, i, r, t in zip(*data.split(name), strict=True)
    ]


def test_splits_partition_the_interactions_sorted():
    data = prepare(make(dense()), name="d")
    assert len(rows_of(data)) == 48 == len({row[:2] for row in rows_of(data)})
    for name in dataset.SPLITS:
        part = data.split(name)
        assert [column.dtype for column in part] == [np.int32, np.int32, np.float32, np.int64]
        key = part.user.astype(np.int64) * 100 + part.item
        assert (np.diff(key) > 0).all()
    # 8 -> 6 stay -> 5 train
    assert [len(data.split(name).user) for name in dataset.SPLITS] == [30, 6, 12]


@settings(deadline=None, max_examples=25)
@given(st.permutations(range(48)), st.sampled_from(["random", "temporal", "leave_last_out"]))
def test_the_order_of_the_rows_does_not_matter(order, split):
    raw, rows = make(dense()), np.array(order)
    codes = np.array([3, 1, 0, 5, 4, 2])  # ids met in another order, too
    shuffled = dataclasses.replace(
        raw,
        user=np.argsort(codes)[raw.user[rows]].astype(np.int32),
        user_ids=[raw.user_ids[code] for code in codes],
        **{name: getattr(raw, name)[rows] for name in ("item", "rating", "time")},
    )
    one, two = (prepare(r, name="d", split=split, seed=3) for r in (raw, shuffled))
    assert one.user_ids == two.user_ids
    assert one.interaction_hash() == two.interaction_hash()


def test_ids_are_in_numeric_order_if_all_are_numbers():
    ids = ["10", "9", "100", "007", "7"]
    assert [ids[n] for n in order_ids(ids)] == ["007", "7", "9", "10", "100"]
    ids = ["10", "9", "x1"]
    assert [ids[n] for n in order_ids(ids)] == ["10", "9", "x1"]
    assert order_ids([]).tolist() == []


def test_attributes_follow_their_items():
    raw = make([(0, 0), (0, 1)] * 1, item_ids=["b", "a"], attributes={"letter": ["B", "A"]})
    data = prepare(raw, name="d", test=0, valid=0)
    assert data.item_ids == ["a", "b"]
    assert data.titles == ["title a", "title b"]
    assert data.attributes == {"letter": ["A", "B"]}
    assert feature_rows(raw, data).tolist() == [1, 0]


def test_k_core_after_threshold_and_repeats():
    rows = [(u, i, 5, 0) for u in range(3) for i in range(3)]
    rows += [(3, 0, 5, 0), (3, 1, 5, 0), (3, 2, 1, 0), (3, 0, 5, 0)]  # two, if one counts twice
    data = prepare(make(rows), name="d", k_core=3, min_rating=4, test=0.3, valid=0.4)
    assert data.user_ids == ["0", "1", "2"]
    assert data.made_by["rows"] == {
        "read": 13,
        "rated 4 or more": 12,
        "without repeats": 11,
        "in the 3-core": 9,
        "split": 9,
    }


@pytest.mark.parametrize(
    ("policy", "rating"), [("last", 2.0), ("first", 3.0), ("max", 4.0)], ids=str
)
def test_duplicates_by_time(policy, rating):
    rows = [(0, 0, 2, 30), (0, 1, 1, 5), (0, 0, 3, 10), (0, 0, 4, 20)]
    data = prepare(make(rows), name="d", duplicates=policy, test=0, valid=0)
    assert data.train.rating.tolist() == [rating, 1.0]


def test_duplicates_without_times_by_row():
    rows = [(0, 0, 2), (0, 0, 4), (0, 0, 3)]
    ratings = [
        prepare(make(rows), name="d", duplicates=policy, test=0, valid=0).train.rating.tolist()
        for policy in ("first", "last", "max")
    ]
    assert ratings == [[2.0], [3.0], [4.0]]


def test_items_without_interactions_stay_if_asked():
    raw = make(dense(), item_ids=[str(n) for n in range(10)])
    assert prepare(raw, name="d").n_items == 8
    assert prepare(raw, name="d", keep_items="all").n_items == 10


def given_split(labels, rows=None):
    return make(rows or [(0, 0), (0, 1), (1, 0), (1, 2)], split=np.array(labels, np.int8))


def test_given_split_is_the_default_where_there_is_one():
    data = prepare(given_split([0, 1, 0, 2]), name="d")
    assert [len(data.split(name).user) for name in dataset.SPLITS] == [2, 1, 1]
    assert data.made_by["split"] == "given"
    again = prepare(given_split([0, 1, 0, 2]), name="d", split="random", test=0, valid=0)
    assert len(again.train.user) == 4


def test_a_pair_in_two_given_splits():
    raw = given_split([0, 1, 2, 0, 2], [(0, 0), (0, 1), (0, 0), (1, 2), (1, 0)])
    with pytest.raises(InputError, match=r"1 \(user, item\) pairs are in more than one split.*'0'"):
        prepare(raw, name="d")
    data = prepare(raw, name="d", duplicates="first")
    assert ("0", "0", 1.0, 0, "train") in rows_of(data)
    assert len(rows_of(data)) == 4


def test_cold_users():
    raw = given_split([0, 1, 0, 2, 2, 1], [(0, 0), (0, 1), (1, 0), (1, 2), (2, 3), (2, 0)])
    with pytest.raises(InputError, match=r"1 users .* user '2' .*--cold_users=drop.* 2 inter"):
        prepare(raw, name="d")
    dropped = prepare(raw, name="d", cold_users="drop")
    assert dropped.user_ids == ["0", "1"]
    assert dropped.item_ids == ["0", "1", "2"]
    kept = prepare(raw, name="d", cold_users="keep")
    assert kept.n_users == 3
    assert len(rows_of(kept)) == 6


@pytest.mark.parametrize(
    ("raw", "options", "message"),
    [
        (make(dense()), {"k_core": 9}, "no interaction is left .*48 read.* 0 in the 9-core"),
        (make(dense()), {"min_rating": 6}, "no interaction is left .*0 rated 6 or more"),
        (make([]), {}, "no interaction is left .*0 read"),
        (make([(0, 0), (0, 1), (0, 2)]), {"valid": 0.01, "test": 0}, None),
        (make([(0, n) for n in range(3)]), {"test": 0.5, "valid": 0.9}, "no train interactions"),
        (given_split([0, 2, 0, 2]), {}, "the valid split is empty"),
        (given_split([0, 1, 0, 1]), {}, "the test split is empty"),
        (make(dense()), {"split": "given"}, "the source has no split"),
        (make([(0, 0), (0, 1)]), {"split": "temporal"}, "needs times"),
        (make([(0, 0), (0, 1)]), {"split": "leave_last_out"}, "needs times"),
        (make([(0, 0), (0, 1)]), {"split": "temporal_global"}, "needs times"),
        (make([(0, 0), (0, 0)]), {"duplicates": "error"}, "1 .* pairs repeat, user '0' and item"),
        (make(dense()), {"split": "kfold"}, "--split=kfold is not one of given, random"),
        (make(dense()), {"cold_users": "warm"}, "--cold_users=warm is not one of"),
        (make(dense()), {"test": 1.0}, "--test_share=1.0 is not a share"),
        (make(dense()), {"valid": -0.1}, "--valid_share=-0.1 is not a share"),
    ],
)
def test_what_cannot_be_prepared(raw, options, message):
    if message is None:
        assert len(prepare(raw, name="d", **options).valid.user) == 1
        return
    with pytest.raises(InputError, match=message):
        prepare(raw, name="d", **options)


def test_save_and_load(tmp_path):
    raw = make(dense(), images=["x.jpg"] + [""] * 7, attributes={"kind": list("abcdefgh")})
    data = prepare(raw, name="d", seed=1)
    dataset.save(data, tmp_path)
    again = dataset.load(tmp_path)
    assert again.images[0] == str(tmp_path / "x.jpg")
    assert again.statistics() == data.statistics()
    assert again.attributes == data.attributes
    assert again.made_by == data.made_by
    assert rows_of(again) == rows_of(data)


def test_audio_is_an_item_column_like_images(tmp_path):
    raw = make(dense(), audios=["x.wav", "", "/far/z.mp3"] + [""] * 5)
    data = prepare(raw, name="d", seed=1)
    dataset.save(data, tmp_path)
    again = dataset.load(tmp_path)
    assert again.audios == [str(tmp_path / "x.wav"), "", "/far/z.mp3"] + [""] * 5
    assert again.statistics()["items_without_audio"] == 6


def test_a_folder_of_before_there_was_audio_has_none(tmp_path):
    data = prepare(make(dense()), name="d", seed=1)
    dataset.save(data, tmp_path)
    path = tmp_path / "items.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(record.pop("audio") == "" for record in records)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    again = dataset.load(tmp_path)
    assert again.audios == [""] * 8
    assert "items_without_audio" not in again.statistics()


@pytest.mark.parametrize("name", ["interactions.npz", "items.jsonl", "users.txt", "dataset.json"])
def test_a_damaged_folder_is_refused(tmp_path, name):
    dataset.save(prepare(make(dense()), name="d"), tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(InputError, match=str(tmp_path)):
        dataset.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=str(tmp_path)):
        dataset.load(tmp_path)
