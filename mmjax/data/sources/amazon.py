"""Read Amazon reviews of 2014 and of 2023, one category each.

The layouts are those in which McAuley's group publishes them:

  amazon2014   reviews_<Category>_5.json   or  ratings_<Category>.csv,   meta_<Category>.json
  amazon2023   <Category>.jsonl            or  <Category>.csv,           meta_<Category>.jsonl

Each file may end in .gz; images/<item id>.jpg lie beside them. The reviews of 2014 are the 5-core.
The ratings of both are unfiltered; those of 2023 have only the earliest review of a pair (their
5-core is `--k_core=5` of them). An item is an `asin` in 2014 and a `parent_asin` in 2023. Reviews
without a user, an item, a rating or a time are left out and counted, as Ducho's demos do. Times
are seconds.
"""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmjax.core.errors import InputError
from mmjax.data.dataset import SPLITS, Dataset
from mmjax.data.download.fetch import Patience, fetch_large
from mmjax.data.download.images import find_images
from mmjax.data.jsonlines import read_columns
from mmjax.data.raw import Raw, assemble, join_items
from mmjax.data.sources.amazon_metadata import TEXT_FIELDS, read_items
from mmjax.data.tables import column_names, decode, read_table


class DumpLayout(NamedTuple):
    """File paths below the base URL and field names of one release."""

    base_url: str
    reviews: str
    ratings: str
    items: str
    user: str
    item: str
    rating: str
    time: str
    ticks: int  # of the time field per second
    heading: str
    body: str


LAYOUTS = {
    "amazon2014": DumpLayout(
        base_url="http://snap.stanford.edu/data/amazon/productGraph/categoryFiles",
        reviews="reviews_{}_5.json.gz",
        ratings="ratings_{}.csv",
        items="meta_{}.json.gz",
        user="reviewerID",
        item="asin",
        rating="overall",
        time="unixReviewTime",
        ticks=1,
        heading="summary",
        body="reviewText",
    ),
    "amazon2023": DumpLayout(
        base_url="https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023",
        reviews="raw/review_categories/{}.jsonl.gz",
        ratings="benchmark/0core/rating_only/{}.csv.gz",
        items="raw/meta_categories/meta_{}.jsonl.gz",
        user="user_id",
        item="parent_asin",
        rating="rating",
        time="timestamp",
        ticks=1000,
        heading="title",
        body="text",
    ),
}
DUMPS = ("reviews", "ratings")


def read(
    raw: Path,
    source: str,
    category: str,
    *,
    dump: str | None = None,
    text_fields: Sequence[str] = ("title", "description"),
) -> Raw:
    """Read a category: its interactions and the metadata of their items.

    Args:
      raw: the folder.
      source: a key of LAYOUTS.
      category: as in the files' names: Baby in 2014, Baby_Products in 2023.
      dump: one of DUMPS; None takes the reviews if they are there.
      text_fields: those of TEXT_FIELDS that make an item's text. The papers of Ducho take only
        `description`.

    Returns:
      A Raw with the attributes `brand`, `categories` (joined by "|") and `image_url`. Its images
      are the files in `images/`.

    Raises:
      InputError: a file is missing, a line or row is at fault, or a text field is unknown.
    """
    layout = LAYOUTS[source]
    unknown = [name for name in text_fields if name not in TEXT_FIELDS]
    if unknown or not text_fields:
        raise InputError(
            f"--text_fields={','.join(text_fields)} must name some of {', '.join(TEXT_FIELDS)}"
        )
    path, items_path = locate(raw, source, category, dump)
    if ".csv" in path.suffixes:
        table, left_out = _read_ratings(path, layout), 0
    else:
        table, left_out = _read_reviews(path, layout)
    if not len(table):
        raise InputError(f"{path} holds no review with {layout.user} and {layout.item}; check it")
    _, item_ids = decode(table.column("item"))
    items = join_items(item_ids, read_items(items_path, layout.item, item_ids, text_fields))
    items["images"] = find_images(raw / "images", item_ids)
    return assemble(
        table,
        items,
        source=source,
        category=category,
        interactions_file=path.name,
        items_file=items_path.name,
        text_fields=list(text_fields),
        reviews_left_out=left_out,
    )


def locate(raw: Path, source: str, category: str, dump: str | None = None) -> tuple[Path, Path]:
    """Return the paths of the interactions and of the items.

    Raises:
      InputError: one is missing; the message says where it is published.
    """
    layout = LAYOUTS[source]
    log_names = _logs(layout, dump)
    paths = [path for name in log_names if (path := _find(raw, name.format(category)))]
    items = _find(raw, layout.items.format(category))
    for present, name in ((paths, log_names[0]), (items, layout.items)):
        if not present:
            name = name.format(category)
            raise InputError(
                f"{raw / Path(name).name} is missing; check --raw and --category, pass --download, "
                f"or fetch {layout.base_url}/{name}"
            )
    assert items is not None
    return paths[0], items


def fetch(
    raw: Path,
    source: str,
    category: str,
    *,
    dump: str | None = None,
    base_url: str | None = None,
    patience: Patience | None = None,
) -> None:
    """Fetch the files that `read` needs and the folder lacks.

    With no `dump` and neither reviews nor ratings in the folder, the reviews are fetched.

    Raises:
      InputError: see `fetch.fetch_large`.
    """
    layout = LAYOUTS[source]
    for names in (_logs(layout, dump), [layout.items]):
        names = [name.format(category) for name in names]
        if not any(_find(raw, name) for name in names):
            url = f"{(base_url or layout.base_url).rstrip('/')}/{names[0]}"
            fetch_large(url, raw / Path(names[0]).name, patience=patience)


def reviews(raw: Path, source: str, category: str) -> Iterator[pa.Table]:
    """Yield the reviews, one table per block.

    The columns are user, item, rating, time and text (the heading, then the body).

    Raises:
      InputError: the file is missing, or a line is at fault.
    """
    layout = LAYOUTS[source]
    path, _ = locate(raw, source, category, "reviews")
    for table in read_columns(path, _types(layout, layout.heading, layout.body)):
        parts = [pc.fill_null(table.column(name), "") for name in (layout.heading, layout.body)]
        text = pc.binary_join_element_wise(*parts, " ")
        yield _complete(table, layout, text=text)


def write_reviews(dataset: Dataset, tables: Iterable[pa.Table], path: Path) -> int:
    """Write the review texts of the dataset's interactions as TSV.

    The columns are `user`, `item` and `text`. Runs of white space become one space.

    Args:
      tables: of `reviews`. Where a user reviewed an item more than once, the review with the
        dataset's rating and time is taken, the first if several have them.

    Returns:
      The number of reviews written.
    """
    parts = [dataset.split(name) for name in SPLITS]
    user, item, rating, time = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    keys = user.astype(np.int64) << 32 | item
    order = np.argsort(keys)
    keys, rating, time = keys[order], rating[order], time[order]
    users = {key: code for code, key in enumerate(dataset.user_ids)}
    items = {key: code for code, key in enumerate(dataset.item_ids)}
    written = np.zeros(len(keys), bool)
    with open(path, "w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, "excel-tab", lineterminator="\n")
        writer.writerow(("user", "item", "text"))
        for table in tables:
            pair = [
                np.array([codes.get(key, -1) for key in table.column(name).to_pylist()], np.int64)
                for name, codes in (("user", users), ("item", items))
            ]
            key = pair[0] << 32 | pair[1]
            position = np.searchsorted(keys, key).clip(max=len(keys) - 1)
            fits = (pair[0] >= 0) & (pair[1] >= 0) & (keys[position] == key) & ~written[position]
            fits &= rating[position] == table.column("rating").to_numpy().astype(np.float32)
            fits &= time[position] == table.column("time").to_numpy()
            chosen, first = np.unique(position[fits], return_index=True)
            written[chosen] = True
            picked = table.take(np.sort(np.flatnonzero(fits)[first])).to_pydict()
            for record in zip(picked["user"], picked["item"], picked["text"], strict=True):
                writer.writerow((*record[:2], " ".join(record[2].split())))
    return int(written.sum())


def _logs(layout: DumpLayout, dump: str | None) -> list[str]:
    """Return possible names of the interactions' file, preferred first."""
    return [layout.reviews, layout.ratings] if dump is None else [getattr(layout, dump)]


def _find(raw: Path, name: str) -> Path | None:
    """Return the file, unpacked or packed, or None.

    `name` is its path below the base URL; in the folder only its last part counts.
    """
    path = raw / Path(name).name
    plain = path.with_name(path.name.removesuffix(".gz"))
    packed = path.with_name(f"{plain.name}.gz")
    return next((option for option in (plain, packed) if option.is_file()), None)


def _types(layout: DumpLayout, *texts: str) -> dict[str, pa.DataType]:
    names = dict.fromkeys((layout.user, layout.item, *texts), pa.string())
    return {**names, **dict.fromkeys((layout.rating, layout.time), pa.float64())}


def _complete(table: pa.Table, layout: DumpLayout, **more: pa.ChunkedArray) -> pa.Table:
    """Keep the rows with user, item, rating and time.

    The columns get these names; `more` are further columns. Times become seconds.
    """
    columns = {role: table.column(getattr(layout, role)) for role in ("user", "item")}
    numbers = {role: table.column(getattr(layout, role)) for role in ("rating", "time")}
    masks = [pc.not_equal(column, "") for column in columns.values()]
    masks += [pc.is_finite(column) for column in numbers.values()]
    keep = masks[0]
    for mask in masks[1:]:
        keep = pc.and_(keep, mask)  # null where a value is null, which the filter takes as false
    seconds = pc.floor(pc.divide(numbers["time"], float(layout.ticks)))
    columns |= {"rating": numbers["rating"], "time": seconds, **more}
    filtered = pa.table(columns).filter(keep)
    return filtered.set_column(3, "time", filtered.column("time").cast(pa.int64()))


def _read_reviews(path: Path, layout: DumpLayout) -> tuple[pa.Table, int]:
    """Read the interactions of a file of reviews.

    Returns:
      The interactions, and the number of incomplete reviews left out.
    """
    parts, lines = [], 0
    for table in read_columns(path, _types(layout)):
        lines += len(table)
        part = _complete(table, layout)
        for position, role in enumerate(("user", "item")):
            coded = part.column(role).combine_chunks().dictionary_encode()
            part = part.set_column(position, role, coded)
        parts.append(part)
    if not parts:
        raise InputError(f"{path} is empty; fetch it again")
    table = pa.concat_tables(parts)
    return table, lines - len(table)


def _read_ratings(path: Path, layout: DumpLayout) -> pa.Table:
    columns = {role: position for position, role in enumerate(("user", "item", "rating", "time"))}
    header = column_names(path, ",")[:1] == [layout.user]
    table = read_table(path, columns, separator=",", header=header)
    seconds = pc.floor(pc.divide(table.column("time"), float(layout.ticks)))
    return table.set_column(table.column_names.index("time"), "time", seconds)
