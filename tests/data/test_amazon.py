"""Amazon's dumps of 2014 and 2023: small ones in their formats, read, prepared and downloaded."""

import csv
import gzip
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.serving import body, cut, page, picture, ranged, serve, status

from mmjax.core.errors import InputError
from mmjax.data import dataset
from mmjax.data.download import images
from mmjax.data.prepare import prepare
from mmjax.data.sources import amazon
from mmjax.data.tables import read_table

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "prepare.py"
FILES = {
    "amazon2014": ("reviews_Toys_5.json", "ratings_Toys.csv", "meta_Toys.json"),
    "amazon2023": ("Toys.jsonl", "Toys.csv", "meta_Toys.jsonl"),
}
SOURCES = tuple(FILES)
SERVED = {
    "amazon2014": ("/reviews_Toys_5.json.gz", "/meta_Toys.json.gz"),
    "amazon2023": (
        "/raw/review_categories/Toys.jsonl.gz",
        "/raw/meta_categories/meta_Toys.jsonl.gz",
    ),
}


def review(source, user, item, rating=5, when=1_400_000_000, title="Nice", text="I like it."):
    """A line of reviews."""
    if source == "amazon2014":
        names = ("reviewerID", "asin", "reviewerName", "helpful", "reviewText", "overall")
        values = (user, item, 'A. "B"', [0, 1], text, float(rating))
        more = {"summary": title, "unixReviewTime": when, "reviewTime": "05 13, 2014"}
    else:
        names = ("rating", "title", "text", "images", "asin", "parent_asin", "user_id")
        values = (float(rating), title, text, [{"a": "b"}], f"{item}-red", item, user)
        more = {"timestamp": when * 1000 + 123, "helpful_vote": 0, "verified_purchase": True}
    return json.dumps({**dict(zip(names, values, strict=True)), **more})


def meta(source, item, title="A toy", description="It's for play.", url="", **more):
    """A line of metadata: a Python literal in 2014."""
    if source == "amazon2014":
        record = {"asin": item, "related": {"also_viewed": ["x1", "x2"]}}
        record |= {"title": title} if title is not None else {}
        record |= {"description": description} if description is not None else {}
        record |= {"imUrl": url} if url is not None else {}
        record |= {"brand": "Acme", "categories": [["Toys", "Cars"], ["Toys", "Red"]], **more}
        return repr(record)
    image = {"hi_res": None, "thumb": "http://x/thumb.jpg", "large": url, "variant": "MAIN"}
    side = {"hi_res": "http://x/side.jpg", "thumb": "", "large": "", "variant": "PT01"}
    record = {"main_category": "Toys", "title": title, "features": ["Red", "Fast"]}
    record |= {"description": [description] if description else [], "store": "Acme"}
    record |= {"images": [side, image] if url else [], "categories": ["Toys", "Cars", "Red"]}
    return json.dumps(
        {**record, "details": {}, "parent_asin": item, "bought_together": None, **more}
    )


def write(folder, source, reviews=(), items=(), ratings=None, packed=False):
    """A folder of dumps."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in zip(FILES[source], (reviews, ratings, items), strict=True):
        if lines:
            content = "".join(f"{line}\n" for line in lines).encode()
            path = folder / (f"{name}.gz" if packed else name)
            path.write_bytes(gzip.compress(content) if packed else content)
    return folder


def triples(raw):
    return [
        (raw.user_ids[u], raw.item_ids[i], float(r), int(t))
        for u, i, r, t in zip(raw.user, raw.item, raw.rating, raw.time, strict=True)
    ]


# ---- reading ----


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("source", SOURCES)
def test_reviews_and_items(tmp_path, source, packed):
    reviews = [review(source, "u1", "B1", 4, 10), review(source, "u2", "B2", 5, 20)]
    reviews += [review(source, "u1", "B2", 1, 30)]
    items = [meta(source, "B0", "Not asked for"), meta(source, "B2", url=" http://x/2.jpg ")]
    items += [meta(source, "B2", "Repeated"), meta(source, "B1", None, None)]
    write(tmp_path, source, reviews, items, packed=packed)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "B1.png").write_bytes(b"")
    raw = amazon.read(tmp_path, source, "Toys")
    assert triples(raw) == [("u1", "B1", 4, 10), ("u2", "B2", 5, 20), ("u1", "B2", 1, 30)]
    assert raw.item_ids == ["B1", "B2"]
    assert raw.titles == ["", "A toy"]
    assert raw.texts == ["", "A toy It's for play."]
    assert raw.images == [str(tmp_path / "images" / "B1.png"), ""]
    assert raw.attributes == {
        "brand": ["Acme", "Acme"],
        "categories": ["Toys|Cars|Red"] * 2,
        "image_url": ["", "http://x/2.jpg"],
    }
    names = FILES[source]
    assert raw.made_by == {
        "source": source,
        "category": "Toys",
        "interactions_file": names[0] + ".gz" * packed,
        "items_file": names[2] + ".gz" * packed,
        "text_fields": ["title", "description"],
        "reviews_left_out": 0,
    }


@pytest.mark.parametrize("source", SOURCES)
def test_text_fields(tmp_path, source):
    write(tmp_path, source, [review(source, "u", "B")], [meta(source, "B")])
    for fields, text in (
        (["description"], "It's for play."),
        (["brand", "title"], "Acme A toy"),
        (["categories"], "Toys Cars Toys Red" if source == "amazon2014" else "Toys Cars Red"),
        (["features"], "" if source == "amazon2014" else "Red Fast"),
    ):
        assert amazon.read(tmp_path, source, "Toys", text_fields=fields).texts == [text]
    for fields in (["titel"], []):
        with pytest.raises(InputError, match=r"--text_fields=.* must name some of title, descri"):
            amazon.read(tmp_path, source, "Toys", text_fields=fields)


@pytest.mark.parametrize("source", SOURCES)
def test_ratings(tmp_path, source):
    when = "1400000000" if source == "amazon2014" else "1400000000999"
    ratings = [f"u1,B1,5.0,{when}", f"u2,B1,3.0,{when}"]
    write(tmp_path, source, [], [meta(source, "B1")], ratings)
    expected = [("u1", "B1", 5, 1_400_000_000), ("u2", "B1", 3, 1_400_000_000)]
    assert triples(amazon.read(tmp_path, source, "Toys")) == expected
    layout = amazon.LAYOUTS[source]
    header = ",".join((layout.user, layout.item, "rating", "timestamp"))
    write(tmp_path, source, [review(source, "r", "B1")], [], [header, *ratings])
    assert triples(amazon.read(tmp_path, source, "Toys", dump="ratings")) == expected
    assert triples(amazon.read(tmp_path, source, "Toys"))[0][0] == "r"  # reviews come first


def test_only_what_is_not_there_is_fetched(tmp_path):
    source = "amazon2023"
    write(tmp_path, source, [], [meta(source, "B")], ["u,B,5.0,9000"])
    with serve() as server:
        server.routes = {SERVED[source][0]: body(gzip.compress(b"{}"))}
        amazon.fetch(tmp_path, source, "Toys", base_url=server.url(""))
        assert not server.asked  # the ratings do
        amazon.fetch(tmp_path, source, "Toys", base_url=server.url(""), dump="reviews")
        assert [*server.asked] == [SERVED[source][0]]


def test_incomplete_reviews_are_left_out_and_counted(tmp_path):
    source = "amazon2023"
    good = json.loads(review(source, "u", "B", 2))
    faults = [{**good, name: None} for name in ("user_id", "parent_asin", "rating", "timestamp")]
    faults += [{**good, "user_id": ""}, {**good, "parent_asin": ""}]
    faults += [
        {key: good[key] for key in good if key != "rating"},
        {**good, "rating": float("nan")},
    ]
    write(tmp_path, source, map(json.dumps, [*faults, good]), [meta(source, "B")])
    raw = amazon.read(tmp_path, source, "Toys")
    assert triples(raw) == [("u", "B", 2, 1_400_000_000)]
    assert raw.made_by["reviews_left_out"] == 8
    write(tmp_path, source, map(json.dumps, faults))
    with pytest.raises(InputError, match=r"Toys\.jsonl holds no review with user_id and parent_a"):
        amazon.read(tmp_path, source, "Toys")


@pytest.mark.parametrize(
    ("more", "url"),
    [
        ({"images": None}, ""),
        ({"images": [{"variant": "PT01", "large": "p"}, {"variant": "MAIN", "large": "m"}]}, "m"),
        ({"images": [{"variant": "MAIN", "large": None, "hi_res": "h", "thumb": "t"}]}, "h"),
        ({"images": [{"variant": "MAIN", "large": "", "hi_res": None, "thumb": "t"}]}, "t"),
        ({"images": [{"variant": "PT03", "large": "p"}]}, "p"),
        ({"images": ["odd", {}]}, ""),
        *(({"images": [{"variant": "MAIN", "large": no}]}, "") for no in ("NaN", "n/a", "null")),
    ],
)
def test_which_image(tmp_path, more, url):
    source = "amazon2023"
    write(tmp_path, source, [review(source, "u", "B")], [meta(source, "B", **more)])
    assert amazon.read(tmp_path, source, "Toys").attributes["image_url"] == [url]


def test_odd_metadata(tmp_path):
    source = "amazon2014"
    items = [
        "{'asin': 'B1', 'description': \"'asin': 'B0', it says\", 'title': 'half \\ud83d'}",
        '{"asin": "B2", "title": ["listed", null, ["deep"]], "description": NaN, "imUrl": 3}',
        "{'title': 'no id at all'}",
        "{'asin': 7}",
        "   ",
        "{'asin': 'B9', 'title': and nobody parses this}",
    ]
    write(tmp_path, source, [review(source, "u", f"B{n}") for n in (1, 2, 3)], items)
    raw = amazon.read(tmp_path, source, "Toys")
    assert raw.titles == ["half ?", "listed deep", ""]
    assert raw.texts == ["half ? 'asin': 'B0', it says", "listed deep", ""]
    assert raw.attributes["image_url"] == ["", "", ""]


def test_faults(tmp_path):
    source = "amazon2014"

    def read(**options):
        return amazon.read(tmp_path, source, "Toys", **options)

    with pytest.raises(
        InputError, match=r"reviews_Toys_5\.json\.gz is missing; check --raw and --c"
    ):
        read()
    with pytest.raises(InputError, match=r"ratings_Toys\.csv is missing; .* or fetch http://snap"):
        read(dump="ratings")
    write(tmp_path, source, [review(source, "u", "B")])
    with pytest.raises(InputError, match=r"meta_Toys\.json\.gz is missing; .* pass --download"):
        read()
    write(tmp_path, source, [], [meta(source, "B0"), "{'asin': 'B', 'title': open('x')}"])
    with pytest.raises(InputError, match=r"meta_Toys\.json, line 2: .* is no object in JSON or as"):
        read()
    write(tmp_path, source, [review(source, "u", "B"), review(source, "u", "B")[:-30]])
    with pytest.raises(InputError, match=r"reviews_Toys_5\.json, line 2: .* is no object in JSON"):
        read()
    write(tmp_path, source, [], [meta(source, "B")], ["u,B,5.0,9", "u,B,great,9"])
    with pytest.raises(InputError, match=r"ratings_Toys\.csv, row 2, column f2: 'great', which is"):
        read(dump="ratings")
    (tmp_path / "reviews_Toys_5.json").write_text("")
    with pytest.raises(InputError, match=r"reviews_Toys_5\.json is empty; fetch it again"):
        read()


def test_rows_of_many_blocks(tmp_path, monkeypatch):
    """Users and items whose codes differ from block to block, some of them read line by line."""
    source = "amazon2014"
    rows = [(f"u{n * 7 % 101}", f"B{n * 5 % 89}", 1 + n % 5, n) for n in range(2000)]
    reviews = [review(source, *row) for row in rows]
    reviews[700] = repr(json.loads(reviews[700]))
    write(tmp_path, source, reviews, [meta(source, f"B{n}", f"T{n}") for n in range(95)])
    small = amazon.read_columns.__defaults__
    monkeypatch.setattr(amazon.read_columns, "__defaults__", (3000,))
    raw = amazon.read(tmp_path, source, "Toys")
    assert small == (1 << 24,)
    assert triples(raw) == rows
    assert raw.titles == [f"T{key[1:]}" for key in raw.item_ids]


# ---- reviews as texts of interactions ----


@pytest.mark.parametrize("source", SOURCES)
def test_reviews_of_the_kept_interactions(tmp_path, source):
    pairs = list(itertools.product([f"u{n}" for n in range(6)], [f"B{n}" for n in range(6)]))
    reviews = [
        review(source, u, i, 3, n, f"{u}'s", f'"{i}",\n\ta\r\u2028b')
        for n, (u, i) in enumerate(pairs)
    ]
    reviews.insert(0, review(source, "u0", "B0", 3, -5, "older", "not the last"))
    reviews.append(review(source, "u5", "B5", 4, 35, "other rating", "same time, later row"))
    reviews.append(review(source, "u9", "B0", 3, 1, "too few", ""))
    reviews.append(review(source, "u1", "B1", 3, 7, "as before", "same all, but text"))
    write(tmp_path, source, reviews, [meta(source, f"B{n}") for n in range(6)])
    raw = amazon.read(tmp_path, source, "Toys")
    data = prepare(raw, name="d", k_core=2)
    path = tmp_path / "reviews.tsv"
    assert amazon.write_reviews(data, amazon.reviews(tmp_path, source, "Toys"), path) == 36
    roles = {"user": "user", "item": "item", "text": "text"}
    rows = read_table(path, roles, separator="\t").to_pylist()
    texts = {(row["user"], row["item"]): row["text"] for row in rows}
    assert len(rows) == len(texts) == 36
    expected = {(u, i): f'{u}\'s "{i}", a b' for u, i in pairs}
    expected["u5", "B5"] = "other rating same time, later row"
    assert texts == expected
    with open(path, newline="", encoding="utf-8") as lines:
        assert len(lines.readlines()) == 37


# ---- items without an image or a text ----


def catalogue(source, folder, pictures=(), users=12, items=14, seed=0):
    """Dumps in which some items lack an address, some a text; every item of few users."""
    rng = np.random.default_rng(seed)
    rows = [(f"u{u}", f"B{i}") for u in range(users) for i in range(items) if rng.random() < 0.55]
    reviews = [review(source, *row, 3, n) for n, row in enumerate(rows)]
    lines = []
    for n in range(items):
        url = "" if n % 5 == 1 else f"URL/{n}.png"
        lines.append(meta(source, f"B{n}", None if n % 4 == 2 else "T", None, url))
    write(folder, source, reviews, lines)
    (folder / "images").mkdir()
    for n in pictures:
        (folder / "images" / f"B{n}.jpg").write_bytes(picture())
    return rows


def test_dropping_before_the_core_by_way_of_it(tmp_path):
    """Looking at the core's items only leaves what looking at all items leaves."""
    source, with_image, cores = "amazon2014", {0, 3, 4, 5, 6, 7, 8, 9, 12, 13}, 0
    for seed in range(8):
        folder = tmp_path / str(seed)
        rows = catalogue(source, folder, with_image, seed=seed)
        raw = amazon.read(folder, source, "Toys")
        core = prepare(raw, name="d", k_core=4, test=0, valid=0)
        missing = images.find_missing(core, core.attributes["image_url"], {})
        left = images.drop(raw, missing)
        whole = {f"B{n}" for n in with_image if n % 4 != 2}
        kept = [row for row in rows if row[1] in whole]
        while True:
            size = len(kept)
            for side in (0, 1):
                names = [row[side] for row in kept]
                kept = [row for row in kept if names.count(row[side]) >= 4]
            if len(kept) == size:
                break
        if not kept:
            continue
        cores += 1
        data = prepare(left, name="d", k_core=4, test=0, valid=0)
        pairs = zip(data.train.user, data.train.item, strict=True)
        assert sorted(kept) == sorted((data.user_ids[u], data.item_ids[i]) for u, i in pairs)
        assert data.made_by["dropped"]["items"] == len(missing.visual | missing.textual)
    assert cores >= 3


def test_dropping_everything_is_refused(tmp_path):
    catalogue("amazon2014", tmp_path)
    raw = amazon.read(tmp_path, "amazon2014", "Toys")
    data = prepare(raw, name="d", test=0, valid=0)
    missing = images.find_missing(data, data.attributes["image_url"], {})
    with pytest.raises(InputError, match="no item has both an image and a text; fetch"):
        images.drop(raw, missing)


def test_lists_of_missing_items(tmp_path):
    raw_folder = tmp_path / "raw"
    catalogue("amazon2014", raw_folder, {0, 1, 2, 3})
    data = prepare(amazon.read(raw_folder, "amazon2014", "Toys"), name="d", test=0, valid=0)
    failed = {"B5": "HTTP 404"}
    missing = images.find_missing(data, data.attributes["image_url"], failed)
    images.write_missing(tmp_path, missing)
    visual = (tmp_path / "missing_visual.tsv").read_text().splitlines()
    assert visual[0] == "item\treason"
    assert sorted(visual[1:]) == sorted(
        f"B{n}\t" + ("HTTP 404" if n == 5 else "no URL" if n % 5 == 1 else "not fetched")
        for n in range(4, 14)
    )
    textual = (tmp_path / "missing_textual.tsv").read_text().splitlines()
    assert sorted(textual[1:]) == ["B10\tno text", "B2\tno text", "B6\tno text"]


def test_an_id_is_no_path(tmp_path):
    source, odd = "amazon2014", "../../x y"
    write(tmp_path, source, [review(source, "u", odd)], [meta(source, odd, url="URL")])
    with serve(x_png=body(picture())) as server:
        data = prepare(amazon.read(tmp_path, source, "Toys"), name="d", test=0, valid=0)
        images.fetch_images(data, [server.url("/x.png")], tmp_path / "images")
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["..%2F..%2Fx%20y.jpg"]
    assert amazon.read(tmp_path, source, "Toys").images == [
        str(tmp_path / "images" / "..%2F..%2Fx%20y.jpg")
    ]


# ---- the script ----


def run(source, raw, out, *flags, start=subprocess.run, **options):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment["no_proxy"] = "127.0.0.1"
    command = [sys.executable, SCRIPT, f"--source={source}", f"--raw={raw}", f"--out={out}"]
    command += ["--category=Toys", *map(str, flags)]
    return start(command, env=environment, **options)


def finish(*arguments):
    return run(*arguments, capture_output=True, text=True)


def lists(out):
    found = {}
    for modality in ("visual", "textual"):
        with open(out / f"missing_{modality}.tsv", newline="") as rows:
            found[modality] = dict(csv.reader(list(rows)[1:], "excel-tab"))
    return found


def publish(server, source, items=8, users=8):
    """Serves a category's dumps, which it returns; the images of some items misbehave."""
    pairs = [(f"u{u}", f"B{i}") for u in range(users) for i in range(items)]
    reviews = [review(source, u, i, 4, n) for n, (u, i) in enumerate(pairs)]
    reviews.append(review(source, "u0", "B99", 4, 5))  # not in the core: its image is not wanted
    lines = [meta(source, f"B{n}", url=server.url(f"/{n}.png")) for n in range(items)]
    lines[3] = meta(source, "B3", None, None, server.url("/3.png"))
    lines[4] = meta(source, "B4", url=None)
    lines.append(meta(source, "B99", url=server.url("/99.png")))
    packed = [
        gzip.compress("".join(f"{line}\n" for line in part).encode()) for part in (reviews, lines)
    ]
    for path, content in zip(SERVED[source], packed, strict=True):
        server.routes[path] = ranged(content)
    server.routes |= {f"/{n}.png": body(picture((n + 2, 3))) for n in range(items)}
    server.routes["/0.png"] = [status(429, Retry_After=0), body(picture((2, 3)))]
    server.routes["/1.png"] = page()
    server.routes["/2.png"] = status(404)
    server.routes["/5.png"] = [cut(picture((7, 3)), 30), body(picture((7, 3)))]
    return packed


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_download_to_dataset(tmp_path, source):
    raw, out = tmp_path / "raw", tmp_path / "out"
    flags = ("--k_core=5", "--download", "--reviews")
    with serve() as server:
        publish(server, source)
        done = finish(source, raw, out, *flags, f"--base_url={server.url('/')}")
        assert done.returncode == 0, done.stderr
        asked = {path: len(hits) for path, hits in server.asked.items()}
        again = finish(source, raw, tmp_path / "again", "--k_core=4")
        assert again.returncode == 0, again.stderr
        assert asked == {path: len(hits) for path, hits in server.asked.items()}  # nothing more
    assert asked["/0.png"] == asked["/5.png"] == 2
    assert "/99.png" not in asked
    data = dataset.load(out)
    assert (data.n_users, data.n_items, data.name) == (8, 8, "out")
    assert data.item_ids == [f"B{n}" for n in range(8)]
    assert data.texts == ["" if n == 3 else "A toy It's for play." for n in range(8)]
    for n, path in enumerate(data.images):
        if n in (1, 2, 4):
            assert path == ""
        else:
            assert path == str(raw / "images" / f"B{n}.jpg")
            with Image.open(path) as image:
                assert image.size == (n + 2, 3)
    expected = {
        "visual": {"B1": "a page, no image", "B2": "HTTP 404", "B4": "no URL"},
        "textual": {"B3": "no text"},
    }
    assert lists(out) == expected
    assert "missing: 1 a page, no image, 1 HTTP 404, 1 no URL, 1 no text" in done.stdout
    assert len((out / "reviews.tsv").read_text().splitlines()) == 65
    assert data.made_by["rows"]["in the 5-core"] == 64
    assert sorted(path.name for path in raw.iterdir()) == sorted(
        ["images", *(Path(path).name for path in SERVED[source])]
    )

    assert lists(tmp_path / "again")["visual"] == {
        **dict.fromkeys(("B1", "B2"), "not fetched"),
        "B4": "no URL",
    }
    assert dataset.load(tmp_path / "again").images == data.images


@pytest.mark.slow
def test_drop_missing_with_download(tmp_path):
    source = "amazon2023"
    flags = ("--k_core=3", "--download", "--drop_missing")
    with serve() as server:
        publish(server, source)
        done = finish(
            source, tmp_path / "raw", tmp_path / "out", *flags, f"--base_url={server.url('')}"
        )
    assert done.returncode == 0, done.stderr
    data = dataset.load(tmp_path / "out")
    assert data.item_ids == ["B0", "B5", "B6", "B7"]
    assert all(data.images)
    assert lists(tmp_path / "out")["visual"].keys() == {"B1", "B2", "B4"}
    assert data.made_by["dropped"] == {"items": 4, "rows": 32}
    assert data.made_by["rows"]["read"] == 33  # B99 is not in the core of any


@pytest.mark.slow
def test_killed_downloads_go_on(tmp_path):
    """Killed in the middle of a dump, then in the middle of the images; the same command ends."""
    source, raw, out = "amazon2023", tmp_path / "raw", tmp_path / "out"
    with serve() as server:
        _, whole = publish(server, source)
        first, second = SERVED[source]
        server.routes[second] = [ranged(whole, most=150, stall=True), ranged(whole)]
        good = server.routes["/7.png"]
        server.routes["/7.png"] = [lambda handler: server.closing.wait(), good]
        flags = ("--k_core=5", "--download", f"--base_url={server.url('')}")
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        part = raw / "meta_Toys.jsonl.gz.part"

        process = run(source, raw, out, *flags, start=subprocess.Popen, **quiet)
        while not part.exists() or part.stat().st_size < 100:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()

        process = run(source, raw, out, *flags, start=subprocess.Popen, **quiet)
        while len(list((raw / "images").glob("*.jpg"))) < 4 or "/7.png" not in server.asked:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert not out.exists()

        done = finish(source, raw, out, *flags)
        assert done.returncode == 0, done.stderr
        assert len(server.asked[first]) == 1
        assert [headers.get("Range", "")[:6] for _, headers in server.asked[second]] == [
            "",
            "bytes=",
        ]
        assert len(server.asked["/6.png"]) == 1
        assert len(server.asked["/7.png"]) == 2
    data = dataset.load(out)
    assert [key for key, path in zip(data.item_ids, data.images, strict=True) if not path] == [
        "B1",
        "B2",
        "B4",
    ]


FAULTS = {
    "category": ("amazon2014", ("--category=",), "--category is missing: a category as in the fi"),
    "no such category": (
        "amazon2014",
        ("--download", "--category=Toy"),
        "/reviews_Toy_5.json.gz: HTTP 404; check",
    ),
    "reviews": ("amazon2014", ("--reviews", "--dump=ratings"), "--reviews needs the reviews of an"),
    "others": ("movielens", ("--download",), "--download does not know where movielens is; fetch"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_script_faults(tmp_path, fault):
    source, flags, message = FAULTS[fault]
    with serve() as server:
        flags = (*flags, f"--base_url={server.url('')}")
        done = finish(source, tmp_path / "raw", tmp_path / "out", *flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
