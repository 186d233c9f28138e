r"""Prepare a dataset from raw files or a synthetic world.

  python scripts/prepare.py --source=world --out=runs/world
  python scripts/prepare.py --source=movielens --raw=ml-100k --k_core=5 --out=runs/ml
  python scripts/prepare.py --source=elliot --raw=amazon-baby --cold_users=keep --out=runs/baby
  python scripts/prepare.py --source=interactions --raw=log.parquet --user_column=customer \
      --item_column=sku --items_file=items.csv --split=temporal --out=runs/shop
  python scripts/prepare.py --source=amazon2023 --raw=raw --category=Baby_Products --download \
      --k_core=5 --out=runs/baby2023

The result is one documented, hashed folder. Its files are described in mmjax/data/dataset.py, the
steps in mmjax/data/prepare.py.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from _app import run
from absl import flags

from mmjax.core import files, storage
from mmjax.core.errors import InputError
from mmjax.data import dataset
from mmjax.data.download import images as modalities
from mmjax.data.download.fetch import Patience, count_reasons
from mmjax.data.prepare import COLD_USERS, DUPLICATES, WAYS, feature_rows, prepare
from mmjax.data.raw import Raw
from mmjax.data.sources import amazon, elliot, mmrec, movielens, table
from mmjax.data.synthetic import world

AMAZON = tuple(amazon.LAYOUTS)
SOURCES = ("world", "movielens", "elliot", "mmrec", "interactions", *AMAZON)

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

CATEGORY = flags.DEFINE_string("category", None, "amazon: as in the files' names.")
DUMP = flags.DEFINE_enum("dump", None, amazon.DUMPS, "amazon: default: the reviews if there.")
TEXT_FIELDS = flags.DEFINE_list("text_fields", ["title", "description"], "amazon: make the text.")
REVIEWS = flags.DEFINE_bool("reviews", False, "amazon: write reviews.tsv (user, item, text).")
DROP_MISSING = flags.DEFINE_bool(
    "drop_missing", False, "amazon: before the k-core, drop items that lack image or text."
)
DOWNLOAD = flags.DEFINE_bool(
    "download",
    False,
    "amazon: fetch files and the kept items' images to --raw; goes on if stopped.",
)
BASE_URL = flags.DEFINE_string("base_url", None, "amazon: fetch the files from a mirror.")
CONNECTIONS = flags.DEFINE_integer("connections", 16, "amazon: images fetched at once.", 1)
TRIES = flags.DEFINE_integer("tries", 5, "amazon: how often to try what may pass.", 1)
TIMEOUT = flags.DEFINE_float("timeout", 60, "amazon: most seconds an image takes.", 0.1)


def main() -> None:
    for flag, value in (("source", SOURCE.value), ("out", OUT.value)):
        if not value:
            raise InputError(f"--{flag} is missing; see scripts/prepare.py --help")
    if SOURCE.value not in SOURCES:
        raise InputError(f"--source={SOURCE.value} is not one of {', '.join(SOURCES)}")
    if SOURCE.value != "world" and not RAW.value:
        raise InputError(f"--raw is missing: where the files of --source={SOURCE.value} are")
    if SOURCE.value in AMAZON and not CATEGORY.value:
        raise InputError("--category is missing: a category as in the files' names, as Baby is")
    if REVIEWS.value and (SOURCE.value not in AMAZON or DUMP.value == "ratings"):
        raise InputError("--reviews needs the reviews of an Amazon dump, --dump=reviews")
    if DOWNLOAD.value and SOURCE.value not in AMAZON:
        raise InputError(f"--download does not know where {SOURCE.value} is; fetch it by hand")
    out = storage.path(OUT.value)
    if not files.exists(out / "dataset.json"):  # what --overwrite may replace
        files.refuse_nonempty(out, "holds files but no prepared dataset; choose another folder")
    clock = time.perf_counter()

    def say(what: str) -> None:
        print(f"[{time.perf_counter() - clock:6.1f} s] {what}", flush=True)

    with files.atomic_folder(out, overwrite=OVERWRITE.value, last="dataset.json") as staging:
        say(f"reading {SOURCE.value}")
        raw = read(staging)
        say(f"preparing {len(raw.user):,} interactions")
        if SOURCE.value in AMAZON:
            prepared, missing = prepare_amazon(raw, say)
            modalities.write_missing(staging, missing)
        else:
            prepared = run_steps(raw)
        say("writing")
        dataset.save(prepared, staging)
        write_features(raw, prepared, staging / "features")
        if REVIEWS.value:
            tables = amazon.reviews(storage.local(RAW.value), SOURCE.value, CATEGORY.value)
            count = amazon.write_reviews(prepared, tables, staging / "reviews.tsv")
            say(f"{count:,} reviews")
    say("done")
    for key, value in prepared.statistics().items():
        print(f"{key.replace('_', ' '):>20}  {value:,}")
    print(f"files in {out}: " + ", ".join(sorted(path.name for path in out.iterdir())))


def run_steps(raw: Raw, **instead: Any) -> dataset.Dataset:
    """Run the steps of mmjax/data/prepare.py on raw data.

    Options are the flags', unless `instead` has others.
    """
    options = dict(
        name=NAME.value or storage.path(OUT.value).resolve().name,
        split=SPLIT.value,
        k_core=K_CORE.value,
        min_rating=MIN_RATING.value,
        duplicates=DUPLICATE.value,
        test=TEST_SHARE.value,
        valid=VALID_SHARE.value,
        seed=SEED.value,
        cold_users=COLD.value,
        # Features, and a world's truth, have a row for every item of the catalogue.
        keep_items="all" if SOURCE.value in ("world", "mmrec") else "interacted",
    )
    return prepare(raw, **{**options, **instead})


def prepare_amazon(
    raw: Raw, say: Callable[[str], None]
) -> tuple[dataset.Dataset, modalities.Missing]:
    """Run the steps on a source of Amazon.

    With --download the images of the kept items are fetched. With --drop_missing items that lack
    image or text are dropped and the steps are run again.

    Returns:
      The dataset, and what items lack.
    """
    # An item that the k-core drops from all items, it drops from fewer: its image is not needed.
    unsplit = dict(split="random", test=0, valid=0, cold_users="keep") if DROP_MISSING.value else {}
    prepared = run_steps(raw, **unsplit)
    urls, folder = prepared.attributes["image_url"], storage.local(RAW.value) / "images"
    failed = {}
    if DOWNLOAD.value:
        say(f"fetching images of {prepared.n_items:,} items")
        failed = modalities.fetch_images(
            prepared, urls, folder, connections=CONNECTIONS.value, patience=patience()
        )
        prepared = replace(prepared, images=modalities.find_images(folder, prepared.item_ids))
    missing = modalities.find_missing(prepared, urls, failed)
    reasons = count_reasons([*missing.visual.values(), *missing.textual.values()])
    say(f"missing: {reasons or 'nothing'}")
    if DROP_MISSING.value:
        raw = replace(raw, images=modalities.find_images(folder, raw.item_ids))
        prepared = run_steps(modalities.drop(raw, missing))
    return prepared, missing


def patience() -> Patience:
    return Patience(tries=TRIES.value, stall_s=min(30, TIMEOUT.value), total_s=TIMEOUT.value)


def read(aside: Path) -> Raw:
    """Read the source that the flags name.

    The world draws its images into the folder that is passed.
    """
    if SOURCE.value == "world":
        return world.generate(
            users=USERS.value,
            items=ITEMS.value,
            interactions=INTERACTIONS.value,
            seed=SEED.value,
            images=aside if IMAGES.value else None,
            missing=MISSING.value,
        )
    raw = storage.local(RAW.value)
    if SOURCE.value == "movielens":
        return movielens.read(raw, posters=storage.local(POSTERS.value) if POSTERS.value else None)
    if SOURCE.value == "elliot":
        return elliot.read(raw)
    if SOURCE.value == "mmrec":
        return mmrec.read(raw)
    if SOURCE.value in AMAZON:
        names = (raw, SOURCE.value, CATEGORY.value)
        dump = "reviews" if REVIEWS.value else DUMP.value
        if DOWNLOAD.value:
            amazon.fetch(*names, dump=dump, base_url=BASE_URL.value, patience=patience())
        return amazon.read(*names, dump=dump, text_fields=TEXT_FIELDS.value)
    return table.read(
        raw,
        user_column=USER_COLUMN.value,
        item_column=ITEM_COLUMN.value,
        rating_column=RATING_COLUMN.value,
        time_column=TIME_COLUMN.value,
        split_column=SPLIT_COLUMN.value,
        items_file=storage.local(ITEMS_FILE.value) if ITEMS_FILE.value else None,
    )


def write_features(raw: Raw, prepared: dataset.Dataset, folder: Path) -> None:
    """Write the source's features as stores.

    Rows are in the dataset's item order.
    """
    if not raw.features:
        return
    from mmjax import store  # slow to import, and few sources bring features

    rows = feature_rows(raw, prepared)
    for name, array in raw.features.items():
        metadata = {"encoder": name, "source": SOURCE.value, "modality": name.split("_")[0]}
        store.write_array(str(folder / name), array[rows], item_ids=prepared.item_ids, **metadata)


if __name__ == "__main__":
    run(main)
