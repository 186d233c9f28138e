"""Which items have an image and a text: finding and fetching the images, listing what is missing.

Papers differ in what they do with items that lack one: keep and impute them, or drop them. Kept
items stay in the catalogue with "" for what they lack. Dropped ones go with their interactions
before the k-core, as the papers do that compare both (arXiv 2408.11767).
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from PIL import Image

from mmjax.core.errors import InputError
from mmjax.data.dataset import Dataset
from mmjax.data.download.fetch import Patience, fetch_all
from mmjax.data.raw import Raw
from mmjax.data.sources.movielens import SUFFIXES

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP")
MOST_PIXELS = 50_000_000


class Missing(NamedTuple):
    """For each item without an image, and without a text, the reason."""

    visual: dict[str, str]
    textual: dict[str, str]


def find_images(folder: Path, item_ids: Iterable[str]) -> list[str]:
    """For each item the absolute path of `<id>.jpg` (.png, .webp) in the folder, or ""."""
    files = folder.resolve().iterdir() if folder.is_dir() else ()
    found = {path.stem: str(path) for path in files if path.suffix.lower() in SUFFIXES}
    return [found.get(_stem(key), "") for key in item_ids]


def fetch_images(
    dataset: Dataset,
    urls: Sequence[str],
    folder: Path,
    *,
    connections: int = 16,
    patience: Patience | None = None,
) -> dict[str, str]:
    """Fetches the images that items lack, to `<id>.jpg` in the folder.

    Args:
      urls: [I], "" where there is none.

    Returns:
      For each item whose image could not be had the reason.

    Raises:
      InputError: see `fetch.fetch_all`.
    """
    jobs = {
        key: (url, folder / f"{_stem(key)}.jpg")
        for key, url, image in zip(dataset.item_ids, urls, dataset.images, strict=True)
        if url and not image
    }
    failed = fetch_all(
        list(jobs.values()),
        what="images",
        connections=connections,
        check=image_fault,
        patience=patience,
    )
    return {key: failed[path] for key, (_, path) in jobs.items() if path in failed}


def image_fault(content: bytes) -> str:
    """Why the bytes are no image to keep; "" if they are one.

    The whole of it is decoded, small where the format can, so that a file that breaks off shows.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                return f"more than {MOST_PIXELS:,} pixels"
            if width * height == 1:
                return "a single pixel"  # what Amazon's servers send in place of some images
            image.draft("RGB", (64, 64))
            image.load()
    except Exception:  # Pillow's decoders raise nearly anything
        head = content[:256].lstrip().lower()
        return "a page, no image" if head.startswith((b"<!doctype", b"<html")) else "no image"
    return ""


def find_missing(dataset: Dataset, urls: Sequence[str], failed: Mapping[str, str]) -> Missing:
    """The dataset's items without an image (why: no URL, what failed, or not fetched) or text."""
    visual = {
        key: failed.get(key, "not fetched" if url else "no URL")
        for key, url, image in zip(dataset.item_ids, urls, dataset.images, strict=True)
        if not image
    }
    texts = zip(dataset.item_ids, dataset.texts, strict=True)
    return Missing(visual, {key: "no text" for key, text in texts if not text})


def drop(raw: Raw, missing: Missing) -> Raw:
    """The source without the interactions with items that lack an image or a text.

    Raises:
      InputError: none is left.
    """
    dropped = missing.visual.keys() | missing.textual.keys()
    stays = np.array([key not in dropped for key in raw.item_ids], bool)[raw.item]
    if not stays.any():
        raise InputError(
            "no item has both an image and a text; fetch the images (--download) or keep the items"
        )
    columns = {name: getattr(raw, name)[stays] for name in ("user", "item", "rating", "time")}
    split = None if raw.split is None else raw.split[stays]
    made_by = {**raw.made_by, "dropped": {"items": len(dropped), "rows": int((~stays).sum())}}
    return replace(raw, **columns, split=split, made_by=made_by)


def write_missing(folder: Path, missing: Missing) -> None:
    """Writes missing_visual.tsv and missing_textual.tsv, with the columns item and reason."""
    for modality, reasons in missing._asdict().items():
        path = folder / f"missing_{modality}.tsv"
        with open(path, "w", newline="", encoding="utf-8") as out:
            rows = csv.writer(out, "excel-tab", lineterminator="\n")
            rows.writerows([("item", "reason"), *reasons.items()])


def _stem(item_id: str) -> str:
    return quote(item_id, safe="")  # an id is data, and may hold a slash
