"""Descriptions to attributes: a model's answers about items become a folder that recommenders read.

  attributes/    a store: one-hot rows [I, A] float32 in the dataset's item order, items of which
                 nothing could be read absent; `settings.columns` of its manifest names the columns
  parsed.jsonl   a line an item that has an answer: id, text, form, reason, values and keywords
  summary.json   how many answers had which form, what is not to be read and why, the slots' values

The attributes are a store, not a file of their own kind, because to a recommender they are features
like any other: `--config.features=attributes=OUT/attributes`. The manifest keys them by what they
were made of (`parse`, the digest of the texts), the options, and the encoder of the keywords.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax import store
from mmjax.core import files, storage
from mmjax.core.errors import InputError
from mmjax.data.dataset import Dataset
from mmjax.data.tables import column_names
from mmjax.encoders.core import Tower, stream
from mmjax.features.descriptions import attributes
from mmjax.features.descriptions.parse import FORMS, Answer, infer_slots, parse
from mmjax.features.extraction.inputs import SUFFIXES, Inputs, of_table
from mmjax.parallel import mesh as meshes

ID_COLUMNS = ("asin", "Image Name", "id", "item")  # of released answer files, and plain names
TEXT_COLUMNS = ("result", "Keywords", "text")
DESCRIPTIONS = "descriptions.jsonl"  # what an extraction by a model that answers leaves


def read_table(path: str | Path, id_column: str | None, text_column: str | None) -> Inputs:
    """Answers of a CSV or TSV file; columns that are not named are found by their usual names.

    Raises:
      InputError: no such file or column, or an id that repeats.
    """
    columns = column_names(storage.local(path))
    found = []
    for flag, given, usual in (
        ("id_column", id_column, ID_COLUMNS),
        ("text_column", text_column, TEXT_COLUMNS),
    ):
        name = given or next((name for name in usual if name in columns), None)
        if name is None:
            raise InputError(f"{path} has none of {', '.join(usual)}; say which by --{flag}")
        found.append(name)
    return of_table(path, found[:1], found[1])


def read_store(url: str | Path) -> Inputs:
    """Answers that an extraction left beside its embeddings.

    Raises:
      InputError: the store has none, or its file is damaged.
    """
    opened = store.open_store(url)
    content = store.layout.read(opened.url, opened.kv, DESCRIPTIONS)
    if content is None:
        raise InputError(f"{url} holds no {DESCRIPTIONS}; its encoder gave no answers")
    try:
        lines = [json.loads(line) for line in content.decode().splitlines()]
        texts = {line["id"]: line["text"] for line in lines}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{url}/{DESCRIPTIONS} is damaged ({error}); extract again") from None
    about = {"dataset": "", "answered_by": opened.manifest["encoder"]}
    return Inputs(str(url), list(texts), {"text": list(texts.values())}, about)


def in_order(answers: Inputs, dataset: Dataset) -> Inputs:
    """The same answers, one an item of the dataset in its order, "" where there is none.

    An id may be the name of the item's image file.

    Raises:
      InputError: not one item has an answer.
    """
    texts = dict(zip(answers.ids, answers.values["text"], strict=True))
    for suffix in SUFFIXES["image"]:
        texts |= {key.removesuffix(suffix): text for key, text in texts.items()}
    found = [texts.get(key, "").strip() for key in dataset.item_ids]
    if not any(found):
        raise InputError(
            f"{answers.name} answers for {answers.ids[0]!r} and others, of which dataset "
            f"{dataset.name} has none (its first item is {dataset.item_ids[0]!r})"
        )
    about = {**answers.about, "dataset": dataset.name}
    return Inputs(answers.name, dataset.item_ids, {"text": found}, about)


def embedder(tower: Tower, batch: int = 64) -> attributes.Embed:
    """Sentence embeddings of keywords by a text tower: its first layer.

    Raises:
      InputError: the tower takes something else than texts.
    """
    if not isinstance(tower, Tower) or tower.modality != "text":
        raise InputError("keywords need an encoder of texts with weights, such as bert")
    rows = meshes.rows(meshes.make("data=1"))

    def embed(texts: list[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), next(iter(tower.layers.values()))), np.float32)
        params = jax.tree.map(np.asarray, tower.params)
        for at, values in stream(tower.batches(texts, batch), tower.encode, params, rows):
            vectors[at] = values[0]
        return vectors

    return embed


def describe(
    answers: Inputs,
    out: str | Path,
    embed: attributes.Embed,
    *,
    slots: Sequence[str] = (),
    name: str = "",
    threshold: float = 0.45,
    top: int = 50,
    min_count: int = 1,
    about: Mapping[str, Any] | None = None,
    truth: Mapping[str, Sequence[str]] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Parses answers (see `in_order`) and writes the folder `out` of the module's docstring.

    Args:
      embed: sentence embeddings of keywords.
      slots: their labels in order; taken from the answers unless given.
      name: what reports call the model; the folder's name unless given.
      threshold, top, min_count: see `attributes.one_hot`.
      about: JSON values for the manifest: which encoder `embed` is.
      truth: attribute -> [I] what is true of the items, where that is known; slots of the same
        name are scored.

    Returns:
      What summary.json holds.

    Raises:
      InputError: no slots in the answers, no value, too many keywords, or `out` is there already.
    """
    texts = answers.of("text")
    slots = list(slots) or infer_slots(filter(None, texts))
    if len(slots) < 2 or len({slot.casefold() for slot in slots}) < len(slots):
        raise InputError(
            f"the slots of {answers.name} are not clear (found: {', '.join(slots) or 'none'}); "
            "name two or more different ones by --slots=A,B,C or --prompt=FILE"
        )
    parsed = [parse(text, slots) for text in texts]
    options = {"threshold": threshold, "top": top, "min_count": min_count}
    made = attributes.one_hot([answer.values for answer in parsed], slots, embed, **options)
    options |= {"answers": answers.digest("text"), "slots": slots, **(about or {})}
    summary = summarise(texts, parsed, made)
    scores = accuracy(texts, parsed, slots, truth or {})
    summary |= {"accuracy": scores} if scores else {}
    summary = {"name": name or storage.path(out).resolve().name, **summary, "made": options}
    with files.atomic_folder(out, overwrite=overwrite, last="summary.json") as aside:
        store.write_array(
            aside / "attributes",
            made.hot.astype(np.float32),
            item_ids=answers.ids,
            present=made.hot.any(axis=1),
            encoder="attributes",
            columns=made.columns,
            **answers.about,
            **options,
        )
        with open(aside / "parsed.jsonl", "w", encoding="utf-8") as lines:
            for item, text, answer, row in zip(
                answers.ids, texts, parsed, made.keywords, strict=True
            ):
                if text:
                    values = dict(zip(slots, answer.values, strict=True))
                    words = dict(zip(slots, row, strict=True)) if row else {}
                    line = {"id": item, "text": text, "form": answer.form, "reason": answer.reason}
                    line |= {"values": values, "keywords": words}
                    lines.write(json.dumps(line, ensure_ascii=False) + "\n")
        files.write_json(aside / "summary.json", summary)
    return summary


def summarise(
    texts: Sequence[str], parsed: Sequence[Answer], made: attributes.Attributes
) -> dict[str, Any]:
    """Counts of answers by form and by what is wrong, and of the values of each slot."""
    answered = [answer for text, answer in zip(texts, parsed, strict=True) if text]
    forms = Counter(answer.form for answer in answered)
    reasons = Counter(answer.reason for answer in answered if answer.reason)
    values = {}
    for place, slot in enumerate(made.slots):
        words = {attributes.keyword(answer.values[place]) for answer in answered} - {None}
        kept = Counter(row[place] for row in made.keywords if row)
        values[slot] = {
            "distinct": len(words),
            "other": round(kept[attributes.OTHER] / max(1, kept.total()), 6),
            "counts": dict(kept.most_common()),
        }
    return {
        "items": len(texts),
        "answers": len(answered),
        "complete": len(answered) - reasons.total(),
        "strict": forms["strict"],
        "forms": {form: forms[form] for form in FORMS if forms[form]},
        "not_read": dict(reasons.most_common()),
        "slots": values,
        "columns": len(made.columns),
        "distinct_keywords": made.distinct,
        "clusters": made.clusters,
    }


def accuracy(
    texts: Sequence[str],
    parsed: Sequence[Answer],
    slots: Sequence[str],
    truth: Mapping[str, Sequence[str]],
) -> dict[str, float]:
    """Share of answered items of which a slot's value is the true one, whatever its case."""
    known = {name.casefold(): [value.casefold() for value in truth[name]] for name in truth}
    found = {}
    for place, slot in enumerate(slots):
        if slot.casefold() in known:
            right = [
                str(answer.values[place]).casefold() == value
                for text, answer, value in zip(texts, parsed, known[slot.casefold()], strict=True)
                if text
            ]
            found[slot] = round(sum(right) / max(1, len(right)), 4)
    return found


def card(summary: Mapping[str, Any]) -> str:
    """A summary in a few lines for a terminal."""
    answers = summary["answers"]
    lines = [
        f"{summary['name']}: {answers} answers about {summary['items']} items, "
        f"{summary['complete'] / answers:.4f} with a value in all {len(summary['slots'])} slots, "
        f"{summary['strict'] / answers:.4f} in the form asked for"
    ]
    for form, count in summary["forms"].items():
        lines.append(f"  {form:<11} {count:>7}  {count / answers:.4f}  {FORMS[form]}")
    told = ", ".join(f"{reason} {count}" for reason, count in summary["not_read"].items())
    lines.append(f"  not all slots read: {told or 'none'}")
    lines.append(
        f"  {summary['distinct_keywords']} keywords in {summary['clusters']} clusters, "
        f"{summary['columns']} columns"
    )
    for slot, about in summary["slots"].items():
        common = [word for word in about["counts"] if word != attributes.OTHER][:5]
        lines.append(
            f"  {slot}: {about['distinct']} keywords, other {about['other']:.3f}; "
            f"{', '.join(common)}"
        )
    if "accuracy" in summary:
        told = ", ".join(f"{slot} {share:.3f}" for slot, share in summary["accuracy"].items())
        lines.append(f"  right, of what is known to be true: {told}")
    return "\n".join(lines)
