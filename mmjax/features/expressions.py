"""Derived stores, written as expressions and cached by content.

    clip                            a store by its name, or its folder or URL
    clip~gaussian(seed=1)           a control in its place: gaussian, multivariate or shuffle
    clip~feat_prop(top_k=20)        its absent rows imputed, by a method of `impute`
    clip~mean(mask_rate=0.5)        some present rows hidden first, then imputed
    clip~ae(other=sbert)            imputed from another modality

Marks (`~...`) apply from left to right. Derived stores are in the dataset's derived/stores/, under
a digest of their sources, so that two sweeps, or two hosts, make each only once.
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
    """Return stores by name, from a text or a prepared folder.

    The text is "NAME=STORE,NAME=STORE". Where it is empty, all stores under features/ of the folder
    are returned, in the order of `modality.ordered`.
    """
    if not text:
        features_folder = storage.path(folder) / "features"
        with files.reading(features_folder):
            folders = (
                [path for path in features_folder.iterdir() if path.is_dir()]
                if features_folder.is_dir()
                else []
            )
        paths = {path.name: str(path) for path in folders if not path.name.startswith(".")}
        return {name: paths[name] for name in modality.ordered(paths)}
    return pairs(text)


def pairs(text: str) -> dict[str, str]:
    """Parse "NAME=PLACE,NAME=PLACE" into folders or URLs by name.

    Raises:
      InputError: the text has another form, or names one twice.
    """
    entries = [part.split("=", 1) for part in text.split(",") if part]
    if any(len(pair) != 2 for pair in entries) or len(dict(entries)) != len(entries):
        raise InputError(
            f"{text!r} is not NAME=STORE,NAME=STORE with distinct names (of datasets, NAME=FOLDER)"
        )
    return dict(entries)


def marked(text: str, marks: str) -> str:
    """Append the same marks to each store of a features text."""
    return ",".join(part + marks for part in PARTS.split(text) if part)


def lacking(text: str, stores: Mapping[str, str]) -> list[str]:
    """Return the names in a features text that cannot be resolved.

    The text is "MODALITY=EXPRESSION,...". Such a name is neither one of `stores` nor a possible
    path or URL.
    """
    names = [part.partition("=")[2].split("~")[0] for part in PARTS.split(text) if part]
    names += re.findall(r"other=([\w.-]+)", text)
    return [
        name for name in names if name not in stores and "/" not in name and not Path(name).exists()
    ]


def resolve(text: str, stores: Mapping[str, str], dataset: Dataset, folder: Path) -> str:
    """Replace the expressions of a features text by stores.

    Every expression is made; in its place comes the folder or URL of its store.

    Args:
      text: "MODALITY=EXPRESSION,...".
      stores: folders or URLs by name.
      folder: of the derived stores.

    Raises:
      InputError: an expression that cannot be read, a store that does not exist, or an error of
        `controls.control` or `impute.impute`.
    """
    resolved = []
    for part in filter(None, PARTS.split(text)):
        modality, equals, expression = part.partition("=")
        if not equals:
            raise InputError(f"features {text!r}: {part!r} is not MODALITY=STORE")
        name, *marks = expression.split("~")
        url = stores.get(name, name)
        for mark in marks:
            url = _derive(url, mark, stores, dataset, folder)
        resolved.append(f"{modality}={url}")
    return ",".join(resolved)


def _derive(url: str, mark: str, stores: Mapping[str, str], dataset: Dataset, folder: Path) -> str:
    """Return the store that a mark derives from another.

    It is made unless it exists already.
    """
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
    recipe: dict[str, Any] = {"kind": kind, "options": options, **hashes}
    if kind in impute.METHODS:
        recipe["data_hash"] = dataset.interaction_hash()
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    out = folder / f"{kind}-{digest}"
    if files.exists(out / "manifest.json"):
        return str(out)
    remote = storage.remote(out)
    if not remote:
        folder.mkdir(parents=True, exist_ok=True)
    parent = None if remote else folder
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.partial-", dir=parent) as temporary:
        partial = Path(temporary) / out.name
        if kind in controls.CONTROLS:
            if set(options) - {"seed"}:
                raise InputError(f"~{mark}: a control has one option, seed")
            controls.control(url, partial, kind, **options)
        else:
            mask = {key: options.pop(key) for key in ("mask_rate", "mask_seed") if key in options}
            other = sources.get("other")
            impute.impute(dataset, url, partial, method=kind, options=options, other=other, **mask)
        if remote:
            files.copy(partial, out, last="manifest.json")
        else:
            with contextlib.suppress(OSError):  # another process was first, with the same content
                partial.rename(out)
    return str(out)


def _read(mark: str) -> tuple[str, dict[str, Any]]:
    """Parse `kind(name=value)`; a value is a literal or name."""
    try:
        tree: Any = ast.parse(mark, mode="eval").body
        if isinstance(tree, ast.Name):
            return tree.id, {}
        if tree.args:
            raise ValueError("options need names")
        return tree.func.id, {
            keyword.arg: keyword.value.id
            if isinstance(keyword.value, ast.Name)
            else ast.literal_eval(keyword.value)
            for keyword in tree.keywords
        }
    except (SyntaxError, AttributeError, ValueError) as error:
        raise InputError(f"~{mark} is not ~KIND or ~KIND(option=value, ...): {error}") from None
