"""Find and fetch items' images and list missing modalities.

Papers differ in what they do with items that lack an image or a text: keep and impute them, or drop
them. Kept items stay in the catalogue with "" for what they lack. Dropped ones go with their
interactions before the k-core, as in the papers that compare both (arXiv 2408.11767).
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
    """Reasons for missing images and texts, by item id."""

    visual: dict[str, str]
    textual: dict[str, str]


def find_images(folder: Path, item_ids: Iterable[str]) -> list[str]:
    """Return the absolute path of each item's image.

    The file is `<id>.jpg` (or another suffix of SUFFIXES) in the folder; "" where there is none.
    """
    files = folder.resolve().iterdir() if folder.is_dir() else ()
    path_by_stem = {path.stem: str(path) for path in files if path.suffix.lower() in SUFFIXES}
    return [path_by_stem.get(_stem(key), "") for key in item_ids]


def fetch_images(
    dataset: Dataset,
    urls: Sequence[str],
    folder: Path,
    *,
    connections: int = 16,
    patience: Patience | None = None,
) -> dict[str, str]:
    """Fetch the images that items lack, to `<id>.jpg`.

    Args:
      urls: [I], "" where there is none.
      folder: where the images are written.

    Returns:
      Item id -> reason, for each image that could not be fetched.

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
    """Return why the bytes are not an acceptable image.

    The result is "" if they are one. The whole image is decoded, small where the format allows it,
    so that a truncated file is detected.
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
    """Find the dataset's items without an image or a text.

    The reason for a missing image is "no URL", the failure, or "not fetched".
    """
    visual = {
        key: failed.get(key, "not fetched" if url else "no URL")
        for key, url, image in zip(dataset.item_ids, urls, dataset.images, strict=True)
        if not image
    }
    texts = zip(dataset.item_ids, dataset.texts, strict=True)
    return Missing(visual, {key: "no text" for key, text in texts if not text})


def drop(raw: Raw, missing: Missing) -> Raw:
    """Remove interactions with items that lack image or text.

    Raises:
      InputError: none is left.
    """
    dropped = missing.visual.keys() | missing.textual.keys()
    keep = np.array([key not in dropped for key in raw.item_ids], bool)[raw.item]
    if not keep.any():
        raise InputError(
            "no item has both an image and a text; fetch the images (--download) or keep the items"
        )
    columns = {name: getattr(raw, name)[keep] for name in ("user", "item", "rating", "time")}
    split = None if raw.split is None else raw.split[keep]
    made_by = {**raw.made_by, "dropped": {"items": len(dropped), "rows": int((~keep).sum())}}
    return replace(raw, **columns, split=split, made_by=made_by)


def write_missing(folder: Path, missing: Missing) -> None:
    """Write missing_visual.tsv and missing_textual.tsv.

    Their columns are item and reason.
    """
    for modality, reasons in missing._asdict().items():
        path = folder / f"missing_{modality}.tsv"
        with open(path, "w", newline="", encoding="utf-8") as out:
            writer = csv.writer(out, "excel-tab", lineterminator="\n")
            writer.writerows([("item", "reason"), *reasons.items()])


def _stem(item_id: str) -> str:
    return quote(item_id, safe="")  # an id is data, and may hold a slash
