"""Read MovieLens in its published layouts, with posters if present.

  ratings.csv, items.csv    ml-100k with plot overviews (user_id, movie_id, ...), posters/<id>.jpg
  ratings.csv, movies.csv   ml-latest, ml-20m, ml-25m, ml-32m (userId, movieId, ...)
  u.data, u.item            ml-100k as GroupLens publishes it
  ratings.dat, movies.dat   ml-1m, ml-10m

A film's text is its overview, "" where the layout has none. Genres become the attribute `genres`,
joined by "|".
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from mmjax.core.errors import InputError
from mmjax.data.raw import Raw, assemble, join_items
from mmjax.data.tables import Names, decode, read_table, require

# The order of the flags in u.item, spelt as the columns of items.csv.
GENRES = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "FilmNoir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "SciFi",
    "Thriller",
    "War",
    "Western",
)
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def read(raw: Path, posters: Path | None = None) -> Raw:
    """Read a MovieLens folder.

    Args:
      raw: the folder, in any of the layouts above.
      posters: folder of `<movie id>.jpg` (or another suffix of SUFFIXES); None takes `posters`
        inside `raw` where it exists.

    Raises:
      InputError: no layout fits, a file is missing, or a table is at fault (see `read_table`).
    """
    require(raw)
    positions = {"user": 0, "item": 1, "rating": 2, "time": 3}
    if (raw / "ratings.csv").exists():
        names: dict[str, Names] = {
            "user": ("user_id", "userId"),
            "item": ("movie_id", "movieId"),
            "rating": "rating",
            "time": ("unix_timestamp", "timestamp"),
        }
        table = read_table(raw / "ratings.csv", names, separator=",")
        films = raw / "items.csv" if (raw / "items.csv").exists() else raw / "movies.csv"
        items = _flagged(films) if films.name == "items.csv" else _listed(films)
    elif (raw / "u.data").exists():
        table = read_table(raw / "u.data", positions, separator="\t", header=False)
        films, items = raw / "u.item", _u_item(raw / "u.item")
    elif (raw / "ratings.dat").exists():
        # A reader of one-byte separators sees an empty column inside each "::".
        doubled = {role: 2 * position for role, position in positions.items()}
        table = read_table(raw / "ratings.dat", doubled, separator=":", header=False)
        films, items = raw / "movies.dat", _movies_dat(raw / "movies.dat")
    else:
        raise InputError(
            f"{raw} holds no MovieLens ratings: ratings.csv, u.data or ratings.dat is missing"
        )
    _, item_ids = decode(table.column("item"))
    # The table of films repeats some ids; by its README the first row counts.
    joined = join_items(item_ids, items, path=films, repeated="first")
    folder = posters or raw / "posters"
    if folder.is_dir():
        # Absolute, because a relative path would be taken as one inside the prepared folder.
        files = folder.resolve().iterdir()
        poster_by_id = {path.stem: path for path in files if path.suffix.lower() in SUFFIXES}
        joined["images"] = [str(poster_by_id.get(key, "")) for key in joined["item_ids"]]
    elif posters is not None:
        require(posters, "check --posters")
    return assemble(table, joined, source="movielens", films=films.name)


def _flagged(path: Path) -> dict[str, list[str]]:
    """Read items.csv, which has one 0/1 column per genre."""
    flags = {name: ("genre_unknown" if name == "unknown" else name) for name in GENRES}
    columns = {"id": "movie_id", "title": "title", "text": "overview", **flags}
    table = read_table(path, columns, separator=",", optional=("text", *flags))
    present = [name for name in GENRES if name in table.column_names]
    items = table.to_pydict()
    genres = _genres(present, [items.pop(name) for name in present])
    return {**items, "genres": genres}


def _listed(path: Path) -> dict[str, list[str]]:
    """Read movies.csv, which lists genres as A|B."""
    table = read_table(path, {"id": "movieId", "title": "title", "genres": "genres"}, separator=",")
    return _without_placeholder(table.to_pydict())


def _u_item(path: Path) -> dict[str, list[str]]:
    """Read u.item.

    It is Latin-1: id | title | release | video release | URL | 19 flags.
    """
    rows = _split_lines(path, "|", 5 + len(GENRES))
    flags = list(zip(*(row[5:] for row in rows), strict=True))
    return {
        "id": [row[0] for row in rows],
        "title": [row[1] for row in rows],
        "genres": _genres(GENRES, flags),
    }


def _movies_dat(path: Path) -> dict[str, list[str]]:
    """Read movies.dat.

    It is Latin-1 (ml-1m) or UTF-8 (ml-10m): id :: title :: A|B.
    """
    columns = zip(*_split_lines(path, "::", 3), strict=True)
    return _without_placeholder(
        dict(zip(("id", "title", "genres"), map(list, columns), strict=True))
    )


def _without_placeholder(items: dict[str, list[str]]) -> dict[str, list[str]]:
    genres = ["" if value == "(no genres listed)" else value for value in items["genres"]]
    return {**items, "genres": genres}


def _split_lines(path: Path, separator: str, width: int) -> list[list[str]]:
    content = require(path).read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    rows = [line.split(separator) for line in text.splitlines() if line]
    for number, row in enumerate(rows, start=1):
        if len(row) != width:
            raise InputError(
                f"{path}, row {number}: {len(row)} fields separated by {separator!r} instead of "
                f"{width}; correct or remove the row"
            )
    if not rows:
        raise InputError(f"{path} is empty; check --raw")
    return rows


def _genres(names: Sequence[str], flags: Iterable[Sequence[str]]) -> list[str]:
    """Return each item's genres as `A|B` from flag columns.

    `flags` has one column of "0" or "1" per genre in `names`.
    """
    return [
        "|".join(name for name, flag in zip(names, row, strict=True) if flag == "1")
        for row in zip(*flags, strict=True)
    ]
