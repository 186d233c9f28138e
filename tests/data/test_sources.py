"""Each source on small files of its layouts, and what it says about faulty ones."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from mmjax.core.errors import InputError
from mmjax.data.prepare import feature_rows, prepare
from mmjax.data.sources import elliot, mmrec, movielens
from mmjax.data.sources import table as interactions


def write(folder, **contents):
    """Files from keyword arguments: `ratings_csv="..."` becomes ratings.csv."""
    for name, content in contents.items():
        stem, _, suffix = name.rpartition("_")
        content = content if isinstance(content, bytes) else content.encode()
        (folder / f"{stem.replace('__', '.')}.{suffix}").write_bytes(content)
    return folder


def triples(raw):
    return [
        (raw.user_ids[u], raw.item_ids[i], float(r), int(t))
        for u, i, r, t in zip(raw.user, raw.item, raw.rating, raw.time, strict=True)
    ]


# ---- movielens ----

ITEMS_CSV = (
    "movie_id,title,genre_unknown,Action,Comedy,year,overview\n"
    '20,"Heat, The (1995)",0,1,1,1995,"Cops\nand robbers."\n'
    "10,Babe (1995),0,0,1,1995,\n"
    "20,Repeated (1995),1,0,0,1995,Something else.\n"
)


def test_movielens_with_overviews_and_posters(tmp_path, monkeypatch):
    ratings = "user_id,movie_id,rating,unix_timestamp\n7,20,4,100\n8,10,3.5,90\n"
    write(tmp_path, ratings_csv=ratings, items_csv=ITEMS_CSV)
    (tmp_path / "posters").mkdir()
    (tmp_path / "posters" / "20.jpg").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    raw = movielens.read(Path("."))
    assert triples(raw) == [("7", "20", 4.0, 100), ("8", "10", 3.5, 90)]
    assert raw.titles == ["Heat, The (1995)", "Babe (1995)"]
    assert raw.texts == ["Cops\nand robbers.", ""]
    assert raw.attributes == {"genres": ["Action|Comedy", "Comedy"]}
    assert raw.images == [str(tmp_path / "posters" / "20.jpg"), ""]


def test_movielens_latest(tmp_path):
    write(
        tmp_path,
        ratings_csv="userId,movieId,rating,timestamp\n1,2,4.0,964982703\n",
        movies_csv="movieId,title,genres\n2,Jumanji,Adventure|Children\n3,X,(no genres listed)\n",
    )
    raw = movielens.read(tmp_path)
    assert triples(raw) == [("1", "2", 4.0, 964982703)]
    assert raw.item_ids == ["2", "3"]
    assert raw.attributes == {"genres": ["Adventure|Children", ""]}


def test_movielens_100k_as_published(tmp_path):
    flags = "|".join("1" if n in (1, 18) else "0" for n in range(19))
    film = f"5|Misérables, Les (1995)|01-Jan-1995||http://x|{flags}\n"
    write(tmp_path, u_data="1\t5\t3\t88\n", u_item=film.encode("latin-1"))
    raw = movielens.read(tmp_path)
    assert triples(raw) == [("1", "5", 3.0, 88)]
    assert raw.titles == ["Misérables, Les (1995)"]
    assert raw.attributes == {"genres": ["Action|Western"]}
    assert raw.images == [""]


def test_movielens_1m(tmp_path):
    films = "1193::Alien: Café (1975)::Drama\n".encode("latin-1")
    write(tmp_path, ratings_dat="1::1193::5::978300760\n", movies_dat=films)
    raw = movielens.read(tmp_path, posters=tmp_path)
    assert triples(raw) == [("1", "1193", 5.0, 978300760)]
    assert raw.titles == ["Alien: Café (1975)"]
    with pytest.raises(InputError, match=r"none is missing; check --posters"):
        movielens.read(tmp_path, posters=tmp_path / "none")


def test_movielens_faults(tmp_path):
    with pytest.raises(InputError, match="nowhere is missing"):
        movielens.read(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"ratings\.csv, u\.data or ratings\.dat is missing"):
        movielens.read(tmp_path)
    write(tmp_path, ratings_csv="userId,movieId,rating,timestamp\n1,2,4,9\n")
    with pytest.raises(InputError, match=r"movies\.csv is missing"):
        movielens.read(tmp_path)
    write(tmp_path, u_data="1\t5\t3\t88\n", u_item="5|Title\n")
    (tmp_path / "ratings.csv").unlink()
    with pytest.raises(InputError, match=r"u\.item, row 1: 2 fields"):
        movielens.read(tmp_path)


# ---- elliot ----


def test_elliot_without_header(tmp_path):
    write(tmp_path, train_tsv="u1\ta\t5.0\nu2\tb\t1\n", val_tsv="u1\tb\t4\n", test_tsv="u2\ta\t3\n")
    raw = elliot.read(tmp_path)
    assert triples(raw) == [
        ("u1", "a", 5, 0),
        ("u2", "b", 1, 0),
        ("u1", "b", 4, 0),
        ("u2", "a", 3, 0),
    ]
    assert raw.split.tolist() == [0, 0, 1, 2]


def test_elliot_with_header_and_items(tmp_path):
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.tsv").write_text("user\titem\n1\t10\n")
    (tmp_path / "a.jpg").write_bytes(b"")
    items = 'item\tasin\ttext\timage\n11\tB1\tnever seen\tb.jpg\n10\tB0\ta 6" plate\ta.jpg\n'
    write(tmp_path, items_tsv=items)
    raw = elliot.read(tmp_path)
    assert raw.rating.tolist() == [1, 1, 1]
    assert raw.item_ids == ["10", "11"]
    assert raw.texts == ['a 6" plate', "never seen"]
    assert raw.images == [str(tmp_path / "a.jpg"), ""]
    assert raw.made_by["images_not_found"] == 1
    assert raw.attributes == {"asin": ["B0", "B1"]}


def test_elliot_faults(tmp_path):
    write(tmp_path, train_tsv="u\ta\t5\nu\tb\tfive\n", test_tsv="u\tc\t5\n")
    with pytest.raises(InputError, match=r"train\.tsv, row 2, column f2: 'five', which is not a n"):
        elliot.read(tmp_path)
    write(tmp_path, train_tsv="u\ta\t5\n")
    with pytest.raises(InputError, match=r"val\.tsv is missing"):
        elliot.read(tmp_path)
    write(tmp_path, val_tsv="u\td\t5\n", items_tsv="item\ttext\na\tx\nb\ty\na\tz\n")
    with pytest.raises(InputError, match=r"items\.tsv, row 4: item id 'a' .* row 2; keep one"):
        elliot.read(tmp_path)


# ---- mmrec ----

INTER = "userID:token\titemID:token\trating:float\ttimestamp:float\tx_label:float\n"


def inter(*rows):
    return INTER + "".join("\t".join(map(str, row)) + "\n" for row in rows)


def test_mmrec_keeps_items_that_only_have_features(tmp_path):
    write(
        tmp_path,
        baby_inter=inter((0, 3, 5, 9, 0), (0, 0, 4, 8, 1), (1, 10, 3, 7, 0), (1, 0, 1, 6, 2)),
    )
    features = np.arange(22, dtype=np.float64).reshape(11, 2)
    np.save(tmp_path / "image_feat.npy", features)
    np.save(tmp_path / "user_graph_dict.npy", {"pickled": 1}, allow_pickle=True)
    raw = mmrec.read(tmp_path)
    assert triples(raw) == [("0", "3", 5, 9), ("0", "0", 4, 8), ("1", "10", 3, 7), ("1", "0", 1, 6)]
    assert raw.split.tolist() == [0, 1, 0, 2]
    assert list(raw.features) == ["image_feat"]
    data = prepare(raw, name="d", keep_items="all")
    assert data.item_ids == [str(n) for n in range(11)]
    np.testing.assert_array_equal(raw.features["image_feat"][feature_rows(raw, data)], features)


def test_mmrec_plain_names_without_label(tmp_path):
    path = tmp_path / "a.inter"
    path.write_text("userID,itemID\n5,1\n6,0\n")
    raw = mmrec.read(path)
    assert raw.split is None
    assert triples(raw) == [("5", "1", 1, 0), ("6", "0", 1, 0)]


def test_mmrec_faults(tmp_path):
    with pytest.raises(InputError, match=r"must hold one \.inter file, found none"):
        mmrec.read(tmp_path)
    write(tmp_path, a_inter=inter((0, 3, 5, 9, 0)))
    np.save(tmp_path / "text_feat.npy", np.zeros((5, 2), np.float32))
    with pytest.raises(InputError, match=r"text_feat\.npy has 5 rows, but a\.inter has 4 items"):
        mmrec.read(tmp_path)
    (tmp_path / "text_feat.npy").write_bytes(b"no array at all")
    with pytest.raises(InputError, match=r"text_feat\.npy is not a readable array"):
        mmrec.read(tmp_path)
    write(tmp_path, a_inter=inter((0, "B01", 5, 9, 0)))
    with pytest.raises(InputError, match=r"item 'B01' is not an integer"):
        mmrec.read(tmp_path)
    write(tmp_path, a_inter=inter((0, 1, 5, 9, 0), (0, 2, 5, 9, 3)))
    with pytest.raises(InputError, match=r"a\.inter, row 3, column x_label:float: '3', which is n"):
        mmrec.read(tmp_path)
    write(tmp_path, b_inter=inter())
    with pytest.raises(InputError, match=r"found a\.inter, b\.inter"):
        mmrec.read(tmp_path)


# ---- interactions ----


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz", ".parquet"])
def test_interactions_of_any_format(tmp_path, suffix):
    path = tmp_path / f"log{suffix}"
    table = pa.table(
        {
            "extra": [0, 0, 0],
            "who": ["u1", "u2", "u1"],
            "what": [30, 4, 4],
            "stars": [4.5, 1.0, 3.0],
            "timestamp": [1_600_000_000, 5, 6],
            "part": ["train", "val", "test"],
        }
    )
    if suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        options = pyarrow.csv.WriteOptions(delimiter="\t" if suffix == ".tsv" else ",")
        with pa.output_stream(str(path)) as out:
            pyarrow.csv.write_csv(table, out, options)
    raw = interactions.read(
        path, user_column="who", item_column="what", rating_column="stars", split_column="part"
    )
    assert triples(raw) == [("u1", "30", 4.5, 1_600_000_000), ("u2", "4", 1, 5), ("u1", "4", 3, 6)]
    assert raw.split.tolist() == [0, 1, 2]


def test_interactions_parquet_of_timestamps(tmp_path):
    when = pa.array([1_600_000_000_500], pa.int64()).cast(pa.timestamp("ms"))
    table = pa.table({"user": ["u"], "item": ["i"], "time": when})
    pyarrow.parquet.write_table(table, tmp_path / "log.parquet")
    assert triples(interactions.read(tmp_path / "log.parquet")) == [("u", "i", 1, 1_600_000_000)]


def test_interactions_with_items(tmp_path):
    log = write(tmp_path, log_csv="user,item\nu,b\nu,a\n") / "log.csv"
    items = write(tmp_path, items_csv='id,title,description\na,A,"one, two"\nc,C,\n') / "items.csv"
    raw = interactions.read(log, items_file=items)
    assert raw.item_ids == ["b", "a", "c"]
    assert raw.titles == ["", "A", "C"]
    assert raw.texts == ["", "one, two", ""]
    assert raw.audios == ["", "", ""]


def test_interactions_with_audio(tmp_path):
    log = write(tmp_path, log_csv="user,item\nu,b\nu,a\n") / "log.csv"
    items = write(tmp_path, items_csv="id,audio\na,clips/a.wav\nb,gone.wav\nc,\n") / "items.csv"
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/a.wav").write_bytes(b"")
    raw = interactions.read(log, items_file=items)
    assert raw.item_ids == ["b", "a", "c"]
    assert raw.audios == ["", str(tmp_path / "clips/a.wav"), ""]
    assert raw.made_by["audios_not_found"] == 1
    assert raw.attributes == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("user,thing\nu,i\n", r"log\.csv has no column 'item' for the item; it has user, thing"),
        ("user,item,rating\nu,i,5\nu,j,\n", r"log\.csv, row 3, column rating: '', which is not a"),
        ("user,item,rating\nu,i,5\nu,j,n/a\n", r"row 3, column rating: 'n/a', which is not a numb"),
        ("user,item,rating\nu,i,nan\n", r"row 2, column rating: 'nan', which is not a number"),
        ("user,item,rating\nu,i,inf\n", r"row 2, column rating: 'inf', which is not a number"),
        ("user,item,timestamp\nu,i,today\n", r"row 2, column timestamp: 'today', which is not a"),
        ("user,item,split\nu,i,0\nu,j,dev\n", r"row 3, column split: 'dev', which is not one of"),
        ("user,item\nu,i\nu,\n", r"row 3, column item: an empty id; correct or remove the row"),
        ("user,item\nu,i\nu\n", r"log\.csv cannot be read as a table: .*Row #3.* got 1"),
        ("user,item\nu,\xff\n".encode("latin-1"), r"log\.csv cannot be read as a table: .*UTF8"),
        ("", r"log\.csv has no column 'user'"),
    ],
)
def test_interactions_faults(tmp_path, content, message):
    write(tmp_path, log_csv=content)
    with pytest.raises(InputError, match=message) as error:
        interactions.read(tmp_path / "log.csv")
    assert "\n" not in str(error.value)


def test_interactions_more_faults(tmp_path):
    with pytest.raises(InputError, match=r"log\.csv is missing"):
        interactions.read(tmp_path / "log.csv")
    log = write(tmp_path, log_csv="user,item\nu,b\n") / "log.csv"
    with pytest.raises(InputError, match=r"no column 'stars' for the rating; it has user, item"):
        interactions.read(log, rating_column="stars")
    items = write(tmp_path, items_csv="id,title\na,A\nb,B\nb,C\n") / "items.csv"
    with pytest.raises(
        InputError, match=r"items\.csv, row 4: item id 'b' appears already in row 3"
    ):
        interactions.read(log, items_file=items)
    nothing = pa.table({"user": ["u", None], "item": ["a", "b"]})
    pyarrow.parquet.write_table(nothing, tmp_path / "log.parquet")
    with pytest.raises(InputError, match=r"log\.parquet, row 2, column user: no id"):
        interactions.read(tmp_path / "log.parquet")
    (tmp_path / "bad.parquet").write_text("not parquet")
    with pytest.raises(InputError, match=r"bad\.parquet cannot be read"):
        interactions.read(tmp_path / "bad.parquet")


@pytest.mark.slow
def test_rows_are_counted_across_blocks(tmp_path):
    """A file of many blocks, whose dictionaries differ, read by several threads."""
    rows = 1_200_000
    text = ["user,item,rating"] + [f"user-{n % 5003},item-{n % 4999},{n % 5}" for n in range(rows)]
    path = tmp_path / "log.csv"
    path.write_text("\n".join(text) + "\n")
    raw = interactions.read(path)
    assert len(raw.user_ids) == 5003
    for n in (0, 1, 777_777, rows - 1):
        assert triples_at(raw, n) == (f"user-{n % 5003}", f"item-{n % 4999}", n % 5)
    text[1_100_001] = "user-1,item-1,oops"
    path.write_text("\n".join(text) + "\n")
    with pytest.raises(InputError, match=r"row 1100002, column rating: 'oops'"):
        interactions.read(path)


def triples_at(raw, n):
    return raw.user_ids[raw.user[n]], raw.item_ids[raw.item[n]], raw.rating[n]
