"""Item attributes from a model's answers, written as a folder.

  attributes/    a store: one-hot rows [I, A] float32 in the dataset's item order; items whose
                 answers could not be parsed are absent; `settings.columns` of its manifest names
                 the columns
  parsed.jsonl   a line per item that has an answer: id, text, form, reason, values and keywords
  summary.json   counts of the answers' forms, of the reasons for failures, and the slots' values

The attributes are a store, not a file of their own kind, because to a recommender they are features
like any other: `--config.features=attributes=OUT/attributes`. The manifest keys them by their
sources (`parse`, the digest of the texts), the options, and the encoder of the keywords.
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
from mmjax.features.descriptions.parse import FORMS, ParsedAnswer, infer_slots, parse
from mmjax.features.extraction.inputs import SUFFIXES, Inputs, of_table
from mmjax.parallel import mesh as meshes

ID_COLUMNS = ("asin", "Image Name", "id", "item")  # of released answer files, and plain names
TEXT_COLUMNS = ("result", "Keywords", "text")
DESCRIPTIONS = "descriptions.jsonl"  # written by an extraction with a model that generates text


def read_table(path: str | Path, id_column: str | None, text_column: str | None) -> Inputs:
    """Read answers from a CSV or TSV file.

    Columns that are not named are found by their usual names.

    Raises:
      InputError: no such file or column, or an id that repeats.
    """
    columns = column_names(storage.local(path))
    chosen = []
    for flag, requested, usual in (
        ("id_column", id_column, ID_COLUMNS),
        ("text_column", text_column, TEXT_COLUMNS),
    ):
        name = requested or next((name for name in usual if name in columns), None)
        if name is None:
            raise InputError(f"{path} has none of {', '.join(usual)}; say which by --{flag}")
        chosen.append(name)
    return of_table(path, chosen[:1], chosen[1])


def read_store(url: str | Path) -> Inputs:
    """Read the answers that an extraction left beside its embeddings.

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
    metadata = {"dataset": "", "answered_by": opened.manifest["encoder"]}
    return Inputs(str(url), list(texts), {"text": list(texts.values())}, metadata)


def in_order(answers: Inputs, dataset: Dataset) -> Inputs:
    """Return the answers in the dataset's item order.

    There is one answer per item, "" where it has none. An id may be the name of the item's image
    file.

    Raises:
      InputError: not one item has an answer.
    """
    texts = dict(zip(answers.ids, answers.values["text"], strict=True))
    for suffix in SUFFIXES["image"]:
        texts |= {key.removesuffix(suffix): text for key, text in texts.items()}
    ordered = [texts.get(key, "").strip() for key in dataset.item_ids]
    if not any(ordered):
        raise InputError(
            f"{answers.name} answers for {answers.ids[0]!r} and others, of which dataset "
            f"{dataset.name} has none (its first item is {dataset.item_ids[0]!r})"
        )
    metadata = {**answers.about, "dataset": dataset.name}
    return Inputs(answers.name, dataset.item_ids, {"text": ordered}, metadata)


def embedder(tower: Tower, batch: int = 64) -> attributes.Embed:
    """Return a function that embeds keywords with a text tower.

    The sentence embedding is the tower's first layer.

    Raises:
      InputError: the tower does not take texts.
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
    """Parse answers and write the folder `out`.

    The module's docstring lists the contents of the folder.

    Args:
      answers: one per item, in the dataset's order (see `in_order`).
      embed: sentence embeddings of keywords.
      slots: their labels in order; taken from the answers unless given.
      name: the model's name in reports; the folder's name unless given.
      threshold, top, min_count: see `attributes.one_hot`.
      about: JSON values for the manifest: which encoder `embed` is.
      truth: attribute -> [I] true values of the items, where known; slots of the same name are
        scored.

    Returns:
      The content of summary.json.

    Raises:
      InputError: no slots in the answers, no value, too many keywords, or `out` exists already.
    """
    texts = answers.of("text")
    slots = list(slots) or infer_slots(filter(None, texts))
    if len(slots) < 2 or len({slot.casefold() for slot in slots}) < len(slots):
        raise InputError(
            f"the slots of {answers.name} are not clear (found: {', '.join(slots) or 'none'}); "
            "name two or more different ones by --slots=A,B,C or --prompt=FILE"
        )
    parsed = [parse(text, slots) for text in texts]
    options: dict[str, Any] = {"threshold": threshold, "top": top, "min_count": min_count}
    encoded = attributes.one_hot([answer.values for answer in parsed], slots, embed, **options)
    options |= {"answers": answers.digest("text"), "slots": slots, **(about or {})}
    summary = summarise(texts, parsed, encoded)
    scores = accuracy(texts, parsed, slots, truth or {})
    summary |= {"accuracy": scores} if scores else {}
    summary = {"name": name or storage.path(out).resolve().name, **summary, "made": options}
    with files.atomic_folder(out, overwrite=overwrite, last="summary.json") as folder:
        store.write_array(
            folder / "attributes",
            encoded.hot.astype(np.float32),
            item_ids=answers.ids,
            present=np.any(encoded.hot, axis=1),
            encoder="attributes",
            columns=encoded.columns,
            **answers.about,
            **options,
        )
        with open(folder / "parsed.jsonl", "w", encoding="utf-8") as lines:
            for item, text, answer, row in zip(
                answers.ids, texts, parsed, encoded.keywords, strict=True
            ):
                if text:
                    values = dict(zip(slots, answer.values, strict=True))
                    words = dict(zip(slots, row, strict=True)) if row else {}
                    line = {"id": item, "text": text, "form": answer.form, "reason": answer.reason}
                    line |= {"values": values, "keywords": words}
                    lines.write(json.dumps(line, ensure_ascii=False) + "\n")
        files.write_json(folder / "summary.json", summary)
    return summary


def summarise(
    texts: Sequence[str], parsed: Sequence[ParsedAnswer], made: attributes.Attributes
) -> dict[str, Any]:
    """Count answers by form and reason, and values by slot."""
    answered = [answer for text, answer in zip(texts, parsed, strict=True) if text]
    forms = Counter(answer.form for answer in answered)
    reasons = Counter(answer.reason for answer in answered if answer.reason)
    values = {}
    for index, slot in enumerate(made.slots):
        words = {attributes.keyword(answer.values[index]) for answer in answered} - {None}
        kept = Counter(row[index] for row in made.keywords if row)
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
    parsed: Sequence[ParsedAnswer],
    slots: Sequence[str],
    truth: Mapping[str, Sequence[str]],
) -> dict[str, float]:
    """Compute the accuracy of each slot with known true values.

    It is the share of the answered items whose value is the true one, ignoring case.
    """
    known = {name.casefold(): [value.casefold() for value in truth[name]] for name in truth}
    scores = {}
    for index, slot in enumerate(slots):
        if slot.casefold() in known:
            correct = [
                str(answer.values[index]).casefold() == value
                for text, answer, value in zip(texts, parsed, known[slot.casefold()], strict=True)
                if text
            ]
            scores[slot] = round(sum(correct) / max(1, len(correct)), 4)
    return scores


def card(summary: Mapping[str, Any]) -> str:
    """Format a summary in a few lines for a terminal."""
    answers = summary["answers"]
    lines = [
        f"{summary['name']}: {answers} answers about {summary['items']} items, "
        f"{summary['complete'] / answers:.4f} with a value in all {len(summary['slots'])} slots, "
        f"{summary['strict'] / answers:.4f} in the form asked for"
    ]
    for form, count in summary["forms"].items():
        lines.append(f"  {form:<11} {count:>7}  {count / answers:.4f}  {FORMS[form]}")
    listing = ", ".join(f"{reason} {count}" for reason, count in summary["not_read"].items())
    lines.append(f"  not all slots read: {listing or 'none'}")
    lines.append(
        f"  {summary['distinct_keywords']} keywords in {summary['clusters']} clusters, "
        f"{summary['columns']} columns"
    )
    for slot, slot_summary in summary["slots"].items():
        common = [word for word in slot_summary["counts"] if word != attributes.OTHER][:5]
        lines.append(
            f"  {slot}: {slot_summary['distinct']} keywords, other {slot_summary['other']:.3f}; "
            f"{', '.join(common)}"
        )
    if "accuracy" in summary:
        listing = ", ".join(f"{slot} {share:.3f}" for slot, share in summary["accuracy"].items())
        lines.append(f"  right, of what is known to be true: {listing}")
    return "\n".join(lines)
