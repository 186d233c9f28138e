"""Prepares a dataset: raw files, or a synthetic world -> one documented, hashed folder.

  python scripts/prepare.py --source=world --out=runs/world
  python scripts/prepare.py --source=movielens --raw=ml-100k --k_core=5 --out=runs/ml
  python scripts/prepare.py --source=elliot --raw=amazon-baby --cold_users=keep --out=runs/baby
  python scripts/prepare.py --source=interactions --raw=log.parquet --user_column=customer \\
      --item_column=sku --items_file=items.csv --split=temporal --out=runs/shop

The folder's files are described in mmjax/data/dataset.py, the steps in mmjax/data/prepare.py.
"""

import time
from pathlib import Path

from _app import run
from absl import flags

from mmjax import files
from mmjax.data import dataset, elliot, interactions, mmrec, movielens, world
from mmjax.data.prepare import COLD_USERS, DUPLICATES, WAYS, feature_rows, prepare
from mmjax.data.raw import Raw
from mmjax.errors import InputError

SOURCES = ("world", "movielens", "elliot", "mmrec", "interactions")

SOURCE = flags.DEFINE_string("source", None, f"One of {', '.join(SOURCES)}.")
RAW = flags.DEFINE_string("raw", None, "Folder (or table) of the raw data; not for world.")
OUT = flags.DEFINE_string("out", None, "Folder to make.")
NAME = flags.DEFINE_string("name", None, "The dataset's name; the name of --out by default.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace --out if it exists.")

K_CORE = flags.DEFINE_integer("k_core", 0, "Fewest interactions of a user and of an item.", 0)
MIN_RATING = flags.DEFINE_float("min_rating", None, "Leave out interactions rated lower.")
DUPLICATE = flags.DEFINE_enum("duplicates", "last", DUPLICATES, "Which repeat of a pair stays.")
SPLIT = flags.DEFINE_enum(
    "split", None, WAYS, "Default: given where the source has one, or random."
)
TEST_SHARE = flags.DEFINE_float("test_share", 0.2, "Share held out for test.")
VALID_SHARE = flags.DEFINE_float("valid_share", 0.1, "Share of the rest held out for validation.")
COLD = flags.DEFINE_enum("cold_users", "error", COLD_USERS, "Users without train interactions.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the world and of the random split.", 0)

USERS = flags.DEFINE_integer("users", 2000, "world: users.")
ITEMS = flags.DEFINE_integer("items", 1000, "world: items.")
INTERACTIONS = flags.DEFINE_integer("interactions", 30_000, "world: interactions.")
IMAGES = flags.DEFINE_bool("images", True, "world: draw the items.")
MISSING = flags.DEFINE_float("missing", 0.02, "world: share of items without image, and text.")

POSTERS = flags.DEFINE_string("posters", None, "movielens: folder of posters; RAW/posters if any.")
USER_COLUMN = flags.DEFINE_string("user_column", "user", "interactions: column of the user.")
ITEM_COLUMN = flags.DEFINE_string("item_column", "item", "interactions: column of the item.")
RATING_COLUMN = flags.DEFINE_string("rating_column", None, "interactions: column of the rating.")
TIME_COLUMN = flags.DEFINE_string("time_column", None, "interactions: column of the time.")
SPLIT_COLUMN = flags.DEFINE_string("split_column", None, "interactions: column of the split.")
ITEMS_FILE = flags.DEFINE_string("items_file", None, "interactions: table of the items.")


def main() -> None:
    for flag, value in (("source", SOURCE.value), ("out", OUT.value)):
        if not value:
            raise InputError(f"--{flag} is missing; see scripts/prepare.py --help")
    if SOURCE.value not in SOURCES:
        raise InputError(f"--source={SOURCE.value} is not one of {', '.join(SOURCES)}")
    if SOURCE.value != "world" and not RAW.value:
        raise InputError(f"--raw is missing: where the files of --source={SOURCE.value} are")
    out = Path(OUT.value)
    if out.is_dir() and any(out.iterdir()) and not (out / "dataset.json").exists():
        raise InputError(f"--out={out} holds files but no prepared dataset; choose another folder")
    clock = time.perf_counter()

    def say(what: str) -> None:
        print(f"[{time.perf_counter() - clock:6.1f} s] {what}", flush=True)

    with files.folder_aside(out, overwrite=OVERWRITE.value) as aside:
        say(f"reading {SOURCE.value}")
        raw = read(aside)
        say(f"preparing {len(raw.user):,} interactions")
        prepared = prepare(
            raw,
            name=NAME.value or out.resolve().name,
            split=SPLIT.value,
            k_core=K_CORE.value,
            min_rating=MIN_RATING.value,
            duplicates=DUPLICATE.value,
            test=TEST_SHARE.value,
            valid=VALID_SHARE.value,
            seed=SEED.value,
            cold_users=COLD.value,
            # Rows of features, and of a world's truth, are the whole catalogue.
            keep_items="all" if SOURCE.value in ("world", "mmrec") else "interacted",
        )
        say("writing")
        dataset.save(prepared, aside)
        write_features(raw, prepared, aside / "features")
    say("done")
    for key, value in prepared.statistics().items():
        print(f"{key.replace('_', ' '):>20}  {value:,}")
    print(f"files in {out}: " + ", ".join(sorted(path.name for path in out.iterdir())))


def read(aside: Path) -> Raw:
    """Reads the source that the flags name; the world draws its images into `aside`."""
    if SOURCE.value == "world":
        return world.generate(
            users=USERS.value,
            items=ITEMS.value,
            interactions=INTERACTIONS.value,
            seed=SEED.value,
            images=aside if IMAGES.value else None,
            missing=MISSING.value,
        )
    raw = Path(RAW.value)
    if SOURCE.value == "movielens":
        return movielens.read(raw, posters=Path(POSTERS.value) if POSTERS.value else None)
    if SOURCE.value == "elliot":
        return elliot.read(raw)
    if SOURCE.value == "mmrec":
        return mmrec.read(raw)
    return interactions.read(
        raw,
        user_column=USER_COLUMN.value,
        item_column=ITEM_COLUMN.value,
        rating_column=RATING_COLUMN.value,
        time_column=TIME_COLUMN.value,
        split_column=SPLIT_COLUMN.value,
        items_file=Path(ITEMS_FILE.value) if ITEMS_FILE.value else None,
    )


def write_features(raw: Raw, prepared: dataset.Dataset, folder: Path) -> None:
    """The source's feature arrays as stores, rows in the dataset's item order."""
    if not raw.features:
        return
    from mmjax import store  # slow to import, and few sources bring features

    rows = feature_rows(raw, prepared)
    for name, array in raw.features.items():
        about = {"encoder": name, "source": SOURCE.value, "modality": name.split("_")[0]}
        store.write_array(str(folder / name), array[rows], item_ids=prepared.item_ids, **about)


if __name__ == "__main__":
    run(main)
