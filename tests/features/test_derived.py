"""Stores made of stores by an expression: read, made once, refused in one sentence."""

import numpy as np
import pytest

from mmjax import store
from mmjax.core.errors import InputError
from mmjax.data import dataset
from mmjax.data.prepare import prepare
from mmjax.data.synthetic import world
from mmjax.features import expressions


@pytest.fixture(scope="module")
def data():
    raw = world.generate(users=60, items=40, interactions=800, seed=1)
    return prepare(raw, name="small", keep_items="all")


@pytest.fixture
def home(data, tmp_path):
    """A prepared folder with the stores `whole` and `holed`, which lacks a quarter of its rows."""
    folder = tmp_path / "data"
    folder.mkdir()
    dataset.save(data, folder)
    rng = np.random.default_rng(0)
    for name, width in (("whole", 5), ("holed", 3)):
        present = np.ones(data.n_items, bool)
        present[: data.n_items // 4] = name == "whole"
        rows = rng.standard_normal((data.n_items, width), np.float32) * present[:, None]
        url = folder / "features" / name
        store.write_array(url, rows, item_ids=data.item_ids, present=present, encoder="truth")
    return folder


def resolved(text, home, data):
    """The stores of a features text, opened, by modality."""
    text = expressions.resolve(text, expressions.named("", home), data, home / "derived")
    return {name: store.open_store(url) for name, url in (p.split("=") for p in text.split(","))}


def test_names_paths_and_marks(home, data):
    opened = resolved(
        f"visual=whole~shuffle(seed=1),textual={home}/features/holed~mean~gaussian", home, data
    )
    assert list(opened) == ["visual", "textual"]
    before = store.open_store(home / "features" / "whole").read()[0]
    after = opened["visual"].read()[0]
    assert not np.array_equal(before, after)
    np.testing.assert_array_equal(np.sort(before, axis=0), np.sort(after, axis=0))
    assert opened["visual"].manifest["settings"]["control"]["seed"] == 1
    rows, present = opened["textual"].read()
    assert present.all()  # imputed first, so that all of it became noise
    assert abs(rows.std() - 1) < 0.2


@pytest.mark.slow
def test_imputed_masked_and_from_another_modality(home, data):
    opened = resolved(
        "a=holed~feat_prop(top_k=5,layers=2),b=holed~mean(mask_rate=0.5,mask_seed=3),"
        "c=holed~ae(other=whole,epochs=1)",
        home,
        data,
    )
    about = {name: one.manifest["settings"]["imputed"] for name, one in opened.items()}
    assert (about["a"]["top_k"], about["a"]["layers"]) == (5, 2)
    assert about["b"]["masked"] > 0
    assert about["c"]["other_hash"]


def test_made_once_and_again_when_the_content_changes(home, data):
    first = resolved("visual=whole~gaussian", home, data)["visual"]
    made = sorted(path.name for path in (home / "derived").iterdir())
    assert resolved("visual=whole~gaussian", home, data)["visual"].url == first.url
    assert sorted(path.name for path in (home / "derived").iterdir()) == made
    assert resolved("visual=whole~gaussian(seed=1)", home, data)["visual"].url != first.url
    store.write_array(
        home / "features" / "whole",
        np.ones((data.n_items, 5), np.float32),
        item_ids=data.item_ids,
        encoder="other",
        overwrite=True,
    )
    assert resolved("visual=whole~gaussian", home, data)["visual"].url != first.url


def test_names_of_stores(home, tmp_path):
    assert expressions.named("", home) == {
        name: str(home / "features" / name) for name in ("holed", "whole")
    }
    assert expressions.named("a=x,b=gs://y/z", home) == {"a": "x", "b": "gs://y/z"}
    assert expressions.named("", tmp_path / "nothing") == {}
    for name in ("textual", "visual", "colours"):
        (tmp_path / "features" / name).mkdir(parents=True)
    assert list(expressions.named("", tmp_path)) == ["visual", "textual", "colours"]
    with pytest.raises(InputError, match="with distinct names"):
        expressions.named("a=x,a=y", home)


def test_marks_on_every_store():
    text = "a=x~mean(mask_rate=0.5,mask_seed=1),b=y"
    marked = "a=x~mean(mask_rate=0.5,mask_seed=1)~shuffle,b=y~shuffle"
    assert expressions.marked(text, "~shuffle") == marked


def test_what_is_lacking(home):
    stores = expressions.named("", home)
    text = f"a=whole~ae(other=sbert),b=clip~shuffle,c={home}/features/whole,d=gs://bucket/x"
    assert expressions.lacking(text, stores) == ["clip", "sbert"]


FAULTS = {
    "no modality": ("whole", "'whole' is not MODALITY=STORE"),
    "an unknown mark": ("a=whole~blur", "there is no 'blur'; there are gaussian,"),
    "no option": ("a=whole~shuffle(rate=1)", "a control has one option, seed"),
    "an option without a name": ("a=whole~shuffle(1)", "options need names"),
    "half a call": ("a=whole~shuffle(seed=", "is not ~KIND"),
    "code": ("a=whole~shuffle(seed=open('x'))", "is not ~KIND"),
    "no such option of a method": ("a=holed~mean(top_k=3)", "has no option 'top_k'"),
    "no store": ("a=lost~shuffle", "there is no store at lost"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_in_one_sentence_and_nothing_left(home, data, fault):
    text, words = FAULTS[fault]
    with pytest.raises(InputError) as caught:
        resolved(text, home, data)
    assert words in str(caught.value)
    assert not list(home.glob("derived/*"))
