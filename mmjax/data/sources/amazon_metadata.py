"""Read the item metadata of Amazon's releases.

It gives an item's title, text, brand, categories and image URL. The lines of 2014 hold asin, title,
description, brand, categories (lists in a list) and imUrl, those of 2023 parent_asin, title,
description, features and categories (lists), store, and images, each in several sizes. Any of it
may be absent.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.data.jsonlines import blocks, parse_line, writable

TEXT_FIELDS = ("title", "description", "features", "categories", "brand")
SIZES = ("large", "hi_res", "thumb")  # by preference; large is 500 pixels, enough for the encoders
NO_URL = ("", "nan", "n/a", "null", "none")


def read_items(
    path: Path, field: str, item_ids: Sequence[str], text_fields: Sequence[str]
) -> dict[str, list[str]]:
    """Read the metadata columns of the given items for `join_items`.

    An item's first line counts.

    Args:
      field: the field that holds an item's id.
      text_fields: those of TEXT_FIELDS that make the text, in this order, joined by spaces.

    Raises:
      InputError: a line is not an object, or the file cannot be read.
    """
    wanted = {key.encode() for key in item_ids}
    # Most lines are of other items; lines that show only other ids are not parsed.
    id_pattern = re.compile(rb"""["']%s["']\s*:\s*["']([^"']*)["']""" % field.encode())
    columns: dict[str, list[str]] = {
        name: [] for name in ("id", "title", "text", "brand", "categories", "image_url")
    }
    for first_number, block in blocks(path):
        for number, line in enumerate(block.split(b"\n"), start=first_number):
            ids = id_pattern.findall(line)
            if not line.strip() or (ids and wanted.isdisjoint(ids)):
                continue
            record = parse_line(line, path, number)
            key = writable(str(record.get(field)))
            if key.encode() not in wanted:
                continue
            wanted.remove(key.encode())
            record["brand"] = record.get("brand") or record.get("store")
            fields = {name: _leaves(record.get(name)) for name in TEXT_FIELDS}
            parts = [part for name in text_fields for part in fields[name]]
            categories = dict.fromkeys(fields["categories"])
            values = (
                *(key, " ".join(fields["title"]), " ".join(parts), " ".join(fields["brand"])),
                *("|".join(categories), _image_url(record)),
            )
            for column, value in zip(columns.values(), values, strict=True):
                column.append(writable(value))
    return columns


def _leaves(value: Any) -> list[str]:
    """Return the non-empty texts of arbitrarily nested lists."""
    if isinstance(value, str):
        return [value.strip()] if value.strip() else []
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in _leaves(part)]
    return []


def _image_url(record: Mapping[str, Any]) -> str:
    """Return `imUrl`, or the main image's URL of `images`.

    The result is "" where there is none.
    """
    url = record.get("imUrl")
    images = record.get("images")
    if isinstance(images, list):
        images = [image for image in images if isinstance(image, dict)]
        images.sort(key=lambda image: image.get("variant") != "MAIN")
        sizes = [image.get(size) for image in images[:1] for size in SIZES]
        url = next(filter(None, sizes), None)
    url = url.strip() if isinstance(url, str) else ""
    return "" if url.lower() in NO_URL else url
