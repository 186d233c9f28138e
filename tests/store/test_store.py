"""The store: what was written is what is read, whole or in shards, or else a clear refusal."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from mmjax import store
from mmjax.core.errors import InputError
from mmjax.core.ids import hash_ids

DTYPES = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)
SPECS = (P("data"), P("data", "model"), P(None, "model"), P(), P(("data", "model")))


def make_mesh(data, model):
    return jax.make_mesh((data, model), ("data", "model"), (AxisType.Auto,) * 2)


def ids(count):
    return [f"item {i}" for i in range(count)]


def draw(count, width, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    present = rng.random(count) < 0.8
    features = rng.normal(size=(count, width)).astype(dtype)
    return np.where(present[:, None], features, 0).astype(dtype), present


@pytest.fixture
def saved(tmp_path):
    """A store of ten rows in chunks of four, its values, and its folder."""
    features, present = draw(10, 6)
    store.write_array(
        tmp_path / "s", features, item_ids=ids(10), present=present, chunk_rows=4, encoder="e", k=1
    )
    return tmp_path / "s", features, present


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(1, 40),
    width=st.sampled_from((1, 4, 12)),
    chunk_rows=st.integers(1, 50),
    dtype=st.sampled_from(DTYPES),
    spec=st.sampled_from(SPECS),
    data=st.sampled_from((1, 2, 4, 8)),
    seed=st.integers(0, 9),
)
def test_any_shape_chunk_order_and_sharding_round_trips(
    tmp_path_factory, count, width, chunk_rows, dtype, spec, data, seed
):
    url = tmp_path_factory.mktemp("store")
    features, present = draw(count, width, dtype, seed)
    shape = (count, width)
    writer = store.create(url, shape=shape, dtype=dtype, item_ids=ids(count), chunk_rows=chunk_rows)
    spans = list(writer.store.spans())
    for i in np.random.default_rng(seed).permutation(len(spans)):
        start, stop = spans[i]
        writer.write(start, features[start:stop], present[start:stop])
    writer.finish()

    opened = store.open_store(url, item_hash=hash_ids(ids(count)))
    assert opened.shape == shape
    whole, mask = opened.read()
    assert whole.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(whole, features)
    np.testing.assert_array_equal(mask, present)

    rows = -(-count // 8) * 8
    sharding = NamedSharding(make_mesh(data, 8 // data), spec)
    if width % (8 // data):
        sharding = NamedSharding(sharding.mesh, P("data"))
    placed, placed_mask = opened.read(sharding, np.float32, pad_rows_to=rows)
    assert placed.sharding == sharding
    assert placed.shape == (rows, width)
    np.testing.assert_array_equal(np.asarray(placed)[:count], features.astype(np.float32))
    assert not np.asarray(placed)[count:].any()
    np.testing.assert_array_equal(placed_mask, np.pad(present, (0, rows - count)))


def test_a_block_reads_only_its_own_chunks(saved):
    """The last chunk is destroyed; whoever needs the others does not notice."""
    url, features, _ = saved
    (url / "features/c/2/0").unlink()
    device = jax.devices()[3]
    opened = store.open_store(url)
    first = opened.block(0, 8)[0]
    np.testing.assert_array_equal(first, features[:8])
    with pytest.raises(InputError, match=r"features/c/2/0 \(rows 8 to 9\) is missing"):
        opened.read(SingleDeviceSharding(device))


def test_manifest_says_what_the_rows_are(saved):
    manifest = json.loads((saved[0] / "manifest.json").read_text())
    assert manifest["encoder"] == "e"
    assert manifest["settings"] == {"k": 1}
    assert manifest["shape"] == [10, 6]
    assert manifest["item_hash"] == hash_ids(ids(10))
    assert len(manifest["digests"]) == 3


def test_content_hash_follows_values_mask_and_items_but_not_the_order_of_writing(tmp_path):
    features, present = draw(10, 6)

    def content(name, features=features, present=present, items=10, backwards=False):
        with store.create(
            tmp_path / name,
            shape=features.shape,
            dtype=features.dtype,
            item_ids=ids(10) if items == 10 else ids(11)[1:],
            chunk_rows=4,
        ) as writer:
            for start, stop in list(writer.store.spans())[:: -1 if backwards else 1]:
                writer.write(start, features[start:stop], present[start:stop])
        return store.open_store(tmp_path / name).manifest["content_hash"]

    other = features.copy()
    other[np.flatnonzero(present)[0], 0] += 1e-6
    one = content("a")
    assert one == content("b", backwards=True)
    others = {content("c", other), content("d", present=~present), content("e", items=11)}
    assert len(others | {one}) == 4


def test_two_writers_share_a_store(tmp_path):
    """What another writer wrote is known by its records: equal to one writer's store."""
    features, present = draw(10, 6)
    store.write_array(tmp_path / "one", features, item_ids=ids(10), present=present, chunk_rows=4)
    first = store.create(
        tmp_path / "two", shape=(10, 6), dtype=np.float32, item_ids=ids(10), chunk_rows=4
    )
    second = store.Writer(first.store, ids(10))
    second.write(4, features[4:], present[4:], notes=["second"])
    second.settle()
    with pytest.raises(InputError, match="the rows from 0 were never written"):
        first.finish()
    first.write(0, features[:4], present[:4], notes=["first"])
    assert first.notes() == ["first", "second"]
    first.finish()
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def begin(url, **about):
    return store.create(
        url, shape=(10, 6), dtype="float32", item_ids=ids(10), chunk_rows=4, resume=True, **about
    )


@pytest.mark.parametrize("killed", range(5))
def test_an_unfinished_store_goes_on_where_it_was(tmp_path, killed):
    """Killed after so many chunks, or before the arrays were there; ends equal byte for byte."""
    features, present = draw(10, 6)
    with begin(tmp_path / "whole", layer="last") as writer:
        for start, stop in writer.store.spans():
            writer.write(start, features[start:stop], present[start:stop], notes=[start])
    writer = begin(tmp_path / "killed", layer="last")
    if killed == 4:
        (tmp_path / "killed/present/zarr.json").unlink()
        (tmp_path / "killed/items.txt").unlink()
    for start in (8, 0, 4)[: killed % 4]:
        stop = min(start + 4, 10)
        writer.write(start, features[start:stop], present[start:stop], notes=[start])
    writer.settle()
    writer._lock.close()  # as the system does when a process dies
    with begin(tmp_path / "killed", layer="last") as writer:
        assert writer.done == set((8, 0, 4)[: killed % 4])
        for start, stop in writer.store.spans():
            if start not in writer.done:
                writer.write(start, features[start:stop], present[start:stop], notes=[start])
        assert writer.notes() == [0, 4, 8]
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    with begin(tmp_path / "killed", layer="last") as writer:  # nothing is left to do
        assert writer.done == {0, 4, 8}
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_other_options_do_not_go_on_with_a_store(tmp_path):
    writer = begin(tmp_path / "s", layer="last", settings_of_mine=1)
    with pytest.raises(InputError, match="another process is writing"):
        begin(tmp_path / "s", layer="last", settings_of_mine=1)
    writer.write(0, np.ones((4, 6), np.float32), np.ones(4, bool))
    with pytest.raises(RuntimeError), writer:
        raise RuntimeError("stopped")
    with pytest.raises(InputError, match="was begun with layer 'last', not 'first'"):
        begin(tmp_path / "s", layer="first", settings_of_mine=1)
    with pytest.raises(InputError, match=r"settings\.settings_of_mine 1, not 2"):
        begin(tmp_path / "s", layer="last", settings_of_mine=2)
    with pytest.raises(InputError, match=r"settings\.settings_of_mine 1, not None"):
        begin(tmp_path / "s", layer="last")
    assert begin(tmp_path / "s", layer="last", settings_of_mine=1).done == {0}
    fresh = begin(tmp_path / "s", layer="first", overwrite=True)
    assert fresh.done == set()
    with pytest.raises(RuntimeError), fresh:
        raise RuntimeError("stopped")
    assert not (tmp_path / "s").exists()  # not one chunk: nothing to go on with


def test_where_there_are_no_locks_the_last_to_begin_takes_over():
    context = ts.Context()
    rows, there = np.ones((4, 6), np.float32), np.ones(4, bool)
    first = begin("memory://s", context=context)
    first.write(0, rows, there)
    first.settle()
    second = begin("memory://s", context=context)
    assert second.done == {0}
    first.write(4, rows, there)
    with pytest.raises(InputError, match="another process has begun to write memory://s"):
        first.settle()
    second.write(4, rows, there)
    second.write(8, rows[:2], there[:2])
    assert second.finish().manifest["complete"]


@pytest.mark.parametrize("part", ["features/c/1/0", "present/c/1"])
def test_a_flipped_bit_names_its_chunk(saved, part):
    path = saved[0] / part
    content = bytearray(path.read_bytes())
    content[2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{part} \(rows 4 to 7\) is corrupt"):
        store.open_store(saved[0]).read()
    sharding = NamedSharding(make_mesh(2, 4), P("data"))
    with pytest.raises(InputError, match=rf"{part} \(rows 4 to 7\) is corrupt"):
        store.open_store(saved[0]).read(sharding)


def test_a_truncated_chunk_is_corrupt(saved):
    path = saved[0] / "features/c/0/0"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(InputError, match=r"features/c/0/0 \(rows 0 to 3\) is corrupt"):
        store.open_store(saved[0]).read()


@pytest.mark.parametrize("part", ["features/c/1/0", "present/c/1"])
def test_a_missing_chunk_is_not_zeros(saved, part):
    (saved[0] / part).unlink()
    with pytest.raises(InputError, match=rf"{part} \(rows 4 to 7\) is missing"):
        store.open_store(saved[0]).read()


def test_chunks_that_changed_places_are_found(saved):
    chunks = [saved[0] / f"features/c/{i}/0" for i in (0, 1)]
    contents = [path.read_bytes() for path in chunks]
    store.open_store(saved[0]).verify()
    for path, content in zip(chunks, contents[::-1], strict=True):
        path.write_bytes(content)
    with pytest.raises(InputError, match="rows from 0 are not those"):
        store.open_store(saved[0]).verify()


def test_what_is_no_finished_store_of_these_items_is_refused(saved, tmp_path):
    url = saved[0]
    with pytest.raises(InputError, match="there is no store"):
        store.open_store(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"another order .* silently misaligned"):
        store.open_store(url, item_hash=hash_ids(ids(10)[::-1]))
    with pytest.raises(InputError, match=r"10 items but the dataset has 9.*misaligned"):
        store.open_store(url, item_hash=hash_ids(ids(9)), n_items=9)
    (url / "features/zarr.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        store.open_store(url)
    (url / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        store.open_store(url)


def test_an_unfinished_store_does_not_open(tmp_path):
    writer = store.create(tmp_path / "s", shape=(3, 2), dtype=np.float32, item_ids=ids(3))
    writer.write(0, np.ones((3, 2), np.float32), np.ones(3, bool))
    with pytest.raises(InputError, match="unfinished"):
        store.open_store(tmp_path / "s")


def test_nothing_remains_of_a_store_that_failed(tmp_path):
    features = np.ones((5, 2), np.float32)
    features[3, 1] = np.nan
    with pytest.raises(InputError, match=r"'item 3' \(row 3\) hold a NaN"):
        store.write_array(tmp_path / "s", features, item_ids=ids(5), chunk_rows=2)
    with (
        pytest.raises(InputError, match="the rows from 0 were never written"),
        store.create(tmp_path / "s", shape=(3, 2), dtype=np.float32, item_ids=ids(3)),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_infinities_appear_neither_on_writing_nor_on_reading(tmp_path):
    features = np.full((3, 2), 1e6)
    with pytest.raises(InputError, match="as float16"):
        store.write_array(tmp_path / "s", features, item_ids=ids(3), dtype=np.float16)
    store.write_array(tmp_path / "s", features, item_ids=ids(3))
    with pytest.raises(InputError, match="row 0 holds a NaN or infinite value as float16"):
        store.open_store(tmp_path / "s").read(dtype=np.float16)


def test_create_refuses_what_it_would_destroy_or_misalign(saved, tmp_path):
    url, features, _ = saved
    with pytest.raises(InputError, match="exists already"):
        store.write_array(url, features, item_ids=ids(10))
    store.write_array(url, features[:7], item_ids=ids(7), chunk_rows=7, overwrite=True)
    np.testing.assert_array_equal(store.open_store(url).read()[0], features[:7])
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letter.txt").write_text("dear")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="no store"):
            store.write_array(tmp_path / "home", features, item_ids=ids(10), overwrite=overwrite)
    with pytest.raises(InputError, match="is a file"):
        store.write_array(tmp_path / "home/letter.txt", features, item_ids=ids(10))
    with pytest.raises(InputError, match="10 rows of features but 9 items"):
        store.write_array(tmp_path / "t", features, item_ids=ids(9))
    with pytest.raises(InputError, match="cannot hold int64"):
        store.write_array(tmp_path / "t", np.ones((3, 2), np.int64), item_ids=ids(3))
    with pytest.raises(InputError, match="foo://"):
        store.open_store("foo://bucket/s")


def test_part_of_a_chunk_cannot_be_written(tmp_path):
    writer = store.create(
        tmp_path / "s", shape=(10, 2), dtype=np.float32, item_ids=ids(10), chunk_rows=4
    )
    for start, stop in ((1, 4), (0, 3), (4, 9), (8, 12)):
        with pytest.raises(ValueError, match="whole chunks"):
            writer.write(start, np.ones((stop - start, 2)), np.ones(stop - start, bool))


@pytest.mark.parametrize("scheme", ["memory://bucket/deep/s", "file"])
def test_a_url_is_the_same_code_path(tmp_path, scheme):
    url = scheme if "://" in scheme else (tmp_path / "with space").as_uri()
    context = ts.Context()
    features, present = draw(10, 6)
    store.write_array(
        url, features, item_ids=ids(10), present=present, chunk_rows=3, context=context
    )
    opened = store.open_store(url, item_hash=hash_ids(ids(10)), context=context)
    np.testing.assert_array_equal(opened.read()[0], features)
    opened.kv.write("features/c/1/0", None).result()
    with pytest.raises(InputError, match=r"c/1/0 \(rows 3 to 5\) is missing"):
        opened.read()
    with pytest.raises(InputError, match="exists already"):
        store.refuse_existing(url, context=context)


def test_rows_that_do_not_divide_ask_for_padding(saved):
    sharding = NamedSharding(make_mesh(4, 2), P("data"))
    with pytest.raises(ValueError, match="pad_rows_to"):
        store.open_store(saved[0]).read(sharding)


def test_npy_round_trip(saved, tmp_path):
    url, features, present = saved
    store.export_npy(store.open_store(url), tmp_path / "f.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "f.npy"), features)
    store.import_npy(tmp_path / "f.npy", tmp_path / "t", ids(10), encoder="MMRec")
    again, mask = store.open_store(tmp_path / "t").read()
    np.testing.assert_array_equal(again, features)
    np.testing.assert_array_equal(mask, present)
    with pytest.raises(InputError, match="exists already"):
        store.export_npy(store.open_store(url), tmp_path / "f.npy")


def test_folder_round_trip(saved, tmp_path):
    url, features, present = saved
    store.export_folder(store.open_store(url), tmp_path / "d")
    names = {path.name for path in (tmp_path / "d").iterdir()}
    assert names == {f"item {i}.npy" for i in np.flatnonzero(present)}
    one = np.flatnonzero(present)[0]
    assert np.load(tmp_path / f"d/item {one}.npy").shape == (1, 6)
    # Imported for the items in another order, every vector still follows its id.
    store.import_folder(tmp_path / "d", tmp_path / "t", ids(10)[::-1])
    again, mask = store.open_store(tmp_path / "t").read()
    np.testing.assert_array_equal(again, features[::-1])
    np.testing.assert_array_equal(mask, present[::-1])


def test_bfloat16_leaves_as_float32(tmp_path):
    features, present = draw(5, 3, ml_dtypes.bfloat16)
    store.write_array(tmp_path / "s", features, item_ids=ids(5), present=present)
    store.export_npy(store.open_store(tmp_path / "s"), tmp_path / "f.npy")
    array = np.load(tmp_path / "f.npy")
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, features.astype(np.float32))


def test_imports_name_the_file_at_fault(tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    with pytest.raises(InputError, match=r"holds no \.npy"):
        store.import_folder(folder, tmp_path / "t", ids(3))
    np.save(folder / "item 0.npy", np.ones((1, 4), np.float32))
    np.save(folder / "item 2.npy", np.ones((1, 5), np.float32))
    with pytest.raises(InputError, match=r"item 2\.npy has shape \(1, 5\)"):
        store.import_folder(folder, tmp_path / "t", ids(3))
    with pytest.raises(InputError, match=r"item 2\.npy belongs to no item"):
        store.import_folder(folder, tmp_path / "t", ids(2))
    (folder / "item 2.npy").write_bytes(b"no array")
    with pytest.raises(InputError, match=r"item 2\.npy is not a \.npy array"):
        store.import_folder(folder, tmp_path / "t", ids(3))
    np.save(tmp_path / "f.npy", np.ones((4, 2), int))
    with pytest.raises(InputError, match="4 rows but the dataset 3 items"):
        store.import_npy(tmp_path / "f.npy", tmp_path / "t", ids(3))
    np.save(tmp_path / "g.npy", np.ones(4))
    with pytest.raises(InputError, match=r"shape \(4,\)"):
        store.import_npy(tmp_path / "g.npy", tmp_path / "t", ids(4))
    with pytest.raises(InputError, match=r"h\.npy is missing"):
        store.import_npy(tmp_path / "h.npy", tmp_path / "t", ids(4))
    assert not (tmp_path / "t").exists()
    store.import_npy(tmp_path / "f.npy", tmp_path / "t", ids(4))
    assert store.open_store(tmp_path / "t").dtype == np.float32


def test_an_id_that_names_no_file_is_refused(tmp_path):
    store.write_array(tmp_path / "s", np.ones((2, 2), np.float32), item_ids=["a", "../b"])
    with pytest.raises(InputError, match="cannot name a file"):
        store.export_folder(store.open_store(tmp_path / "s"), tmp_path / "d")
    assert not (tmp_path / "d").exists()
