"""Stores made of stores: written as an expression, made once, kept by the content they come from.

    clip                            a store by its name, or its folder or URL
    clip~gaussian(seed=1)           a control in its place: gaussian, multivariate or shuffle
    clip~feat_prop(top_k=20)        its absent rows imputed, by a method of `impute`
    clip~mean(mask_rate=0.5)        some present rows hidden first, then imputed
    clip~ae(other=sbert)            imputed from another modality

Marks follow each other from left to right. What is made lies in the dataset's derived/stores/,
under a digest of what went in, so that two sweeps, or two hosts, make it once.
"""

import ast
import contextlib
import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.core import files, modality, storage
from mmjax.core.errors import InputError
from mmjax.data.dataset import Dataset
from mmjax.features import controls
from mmjax.store.read import open_store

PARTS = re.compile(r",(?![^(]*\))")  # commas outside parentheses


def named(text: str, folder: str | Path) -> dict[str, str]:
    """Return stores by name: of "NAME=STORE,NAME=STORE", or where it is empty all there are.

    Those lie under features/ of a prepared folder, and come in the order of `modality.ordered`.
    """
    if not text:
        place = storage.path(folder) / "features"
        with files.reading(place):
            found = [path for path in place.iterdir() if path.is_dir()] if place.is_dir() else []
        paths = {path.name: str(path) for path in found if not path.name.startswith(".")}
        return {name: paths[name] for name in modality.ordered(paths)}
    return pairs(text)


def pairs(text: str) -> dict[str, str]:
    """Folders or URLs by name, of "NAME=PLACE,NAME=PLACE".

    Raises:
      InputError: it is not that, or names one twice.
    """
    found = [part.split("=", 1) for part in text.split(",") if part]
    if any(len(pair) != 2 for pair in found) or len(dict(found)) != len(found):
        raise InputError(
            f"{text!r} is not NAME=STORE,NAME=STORE with distinct names (of datasets, NAME=FOLDER)"
        )
    return dict(found)


def marked(text: str, marks: str) -> str:
    """A features text with the same marks behind each of its stores."""
    return ",".join(part + marks for part in PARTS.split(text) if part)


def lacking(text: str, stores: Mapping[str, str]) -> list[str]:
    """The names in a features text, "MODALITY=EXPRESSION,...", that are neither one of `stores` nor
    a place where something could lie."""
    names = [part.partition("=")[2].split("~")[0] for part in PARTS.split(text) if part]
    names += re.findall(r"other=([\w.-]+)", text)
    return [
        name for name in names if name not in stores and "/" not in name and not Path(name).exists()
    ]


def resolve(text: str, stores: Mapping[str, str], dataset: Dataset, folder: Path) -> str:
    """A features text with every expression made, and in its place the store's folder or URL.

    Args:
      stores: folders or URLs by name.
      folder: where what is derived lies.

    Raises:
      InputError: an expression that cannot be read, a store that is not there, or what
        `controls.control` and `impute.impute` raise.
    """
    made = []
    for part in filter(None, PARTS.split(text)):
        modality, equals, expression = part.partition("=")
        if not equals:
            raise InputError(f"features {text!r}: {part!r} is not MODALITY=STORE")
        name, *marks = expression.split("~")
        url = stores.get(name, name)
        for mark in marks:
            url = _derive(url, mark, stores, dataset, folder)
        made.append(f"{modality}={url}")
    return ",".join(made)


def _derive(url: str, mark: str, stores: Mapping[str, str], dataset: Dataset, folder: Path) -> str:
    """The store that a mark makes of another; made unless it is there."""
    from mmjax.features.imputation import impute  # training without marks never loads it

    kind, options = _read(mark)
    if kind not in controls.CONTROLS and kind not in impute.METHODS:
        known = ", ".join((*controls.CONTROLS, *impute.METHODS))
        raise InputError(f"~{mark}: there is no {kind!r}; there are {known}")
    sources = {"features": url}
    if "other" in options:
        other = options.pop("other")
        sources["other"] = stores.get(other, other)
    hashes = {name: open_store(at).manifest["content_hash"] for name, at in sources.items()}
    about: dict[str, Any] = {"kind": kind, "options": options, **hashes}
    if kind in impute.METHODS:
        about["data_hash"] = dataset.interaction_hash()
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    out = folder / f"{kind}-{digest}"
    if files.exists(out / "manifest.json"):
        return str(out)
    distant = storage.remote(out)
    if not distant:
        folder.mkdir(parents=True, exist_ok=True)
    where = None if distant else folder
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.partial-", dir=where) as place:
        aside = Path(place) / out.name
        if kind in controls.CONTROLS:
            if set(options) - {"seed"}:
                raise InputError(f"~{mark}: a control has one option, seed")
            controls.control(url, aside, kind, **options)
        else:
            mask = {key: options.pop(key) for key in ("mask_rate", "mask_seed") if key in options}
            other = sources.get("other")
            impute.impute(dataset, url, aside, method=kind, options=options, other=other, **mask)
        if distant:
            files.copy(aside, out, last="manifest.json")
        else:
            with contextlib.suppress(OSError):  # another process was first, with the same content
                aside.rename(out)
    return str(out)


def _read(mark: str) -> tuple[str, dict[str, Any]]:
    """`kind(name=value)` as its parts; a value is a literal or a bare name."""
    try:
        tree = ast.parse(mark, mode="eval").body
        if isinstance(tree, ast.Name):
            return tree.id, {}
        if tree.args:
            raise ValueError("options need names")
        return tree.func.id, {
            word.arg: word.value.id
            if isinstance(word.value, ast.Name)
            else ast.literal_eval(word.value)
            for word in tree.keywords
        }
    except (SyntaxError, AttributeError, ValueError) as error:
        raise InputError(f"~{mark} is not ~KIND or ~KIND(option=value, ...): {error}") from None
