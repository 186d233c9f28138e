"""Show models' descriptions of items on one HTML page.

The page has pictures, answers, the forms of the answers and the values of the slots. It is one
HTML file with its style and its thumbnails embedded: it needs no server, no script and no network.
It shows what scripts/describe.py made of the answers of one or several models.
"""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mmjax.core import files, storage
from mmjax.core.errors import InputError
from mmjax.data.dataset import Dataset
from mmjax.encoders.inputs import images
from mmjax.features.descriptions.attributes import OTHER
from mmjax.features.descriptions.parse import FORMS

SIDE = 320  # pixels of a thumbnail, shown at half of it
BARS = 12  # values of a slot
UNREAD = 24  # answers of a model listed at most because not all slots could be parsed

STYLE = """
:root { --ink: #1f2937; --quiet: #6b7280; --line: #e5e7eb; --bar: #2563eb; --rest: #a9c1f5;
  --bad: #b45309; --paper: #ffffff; --card: #f9fafb; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.25rem 4rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0 0 .4rem; }
p.quiet, .quiet { color: var(--quiet); font-size: .875rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .75rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th { font-weight: 600; font-size: .875rem; color: var(--quiet); }
th:first-child, td:first-child { text-align: left; }
.columns { display: grid; gap: 1.5rem 2rem;
  grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); }
.bar { display: grid; grid-template-columns: 8.5rem 1fr 3.5rem; gap: .5rem; align-items: center;
  font-size: .875rem; line-height: 1.6; }
.bar .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.bar .track { height: .75rem; }
.bar .fill { display: block; height: 100%; background: var(--bar); border-radius: 2px;
  min-width: 1px; }
.bar.other .fill { background: var(--rest); }
.bar .number { text-align: right; font-variant-numeric: tabular-nums; color: var(--quiet); }
.items { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); }
.item { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  overflow: hidden; }
.item .picture { display: block; width: 100%; height: 10rem; object-fit: contain;
  background: #fff; border-bottom: 1px solid var(--line); }
.item .none { display: grid; place-items: center; color: var(--quiet); font-size: .875rem; }
.item .text { padding: .75rem 1rem 1rem; }
.said { margin-top: .6rem; font-size: .875rem; }
.said .words { overflow-wrap: anywhere; white-space: pre-line; }
.chip { display: inline-block; margin: .2rem .25rem 0 0; padding: .05rem .5rem; font-size: .8rem;
  border: 1px solid var(--line); border-radius: 1rem; background: #fff; }
.chip .quiet { font-size: inherit; }
.form { font-size: .75rem; color: var(--quiet); }
.form.bad { color: var(--bad); }
"""


class Described(NamedTuple):
    """Contents of one folder that describe.py made."""

    summary: dict[str, Any]
    lines: dict[str, dict[str, Any]]  # item id -> its line of parsed.jsonl


def load(folders: Sequence[str | Path]) -> list[Described]:
    """Read the folders that describe.py made.

    Raises:
      InputError: one is not what describe.py makes, or two have one name.
    """
    described = []
    for folder in map(storage.path, folders):
        if not files.exists(folder / "summary.json"):
            raise InputError(f"{folder} has no summary.json; make it with scripts/describe.py")
        summary = files.read_json(folder / "summary.json")
        try:
            with storage.open_file(folder / "parsed.jsonl") as lines:
                parsed = {line["id"]: line for line in map(json.loads, lines)}
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{folder}/parsed.jsonl is damaged ({error}); describe again"
            ) from None
        described.append(Described(summary, parsed))
    names = [record.summary["name"] for record in described]
    if len(set(names)) < len(names):
        raise InputError(f"two of the folders are called {', '.join(names)}; pass --name to each")
    return described


def write(
    described: Sequence[Described],
    dataset: Dataset,
    out: str | Path,
    *,
    items: int = 60,
    seed: int = 0,
) -> Path:
    """Write `descriptions.html` into the folder `out`.

    Args:
      items: number of items shown with their pictures, drawn with `seed` among those with an
        answer.

    Returns:
      The path of the page.

    Raises:
      InputError: no item of the dataset has an answer.
    """
    answered = _answered(described, dataset)
    drawn = np.random.default_rng(seed).permutation(answered)[: max(0, items)]
    shown = sorted(drawn.tolist())
    models = " and ".join(model.summary["name"] for model in described)
    title = f"What {models} said of {dataset.name}"
    body = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="quiet">{len(answered):,} of {dataset.n_items:,} items have an answer.</p>',
        _models(described),
        *(_distributions(model) for model in described),
        f"<h2>{len(shown)} items</h2>",
        f'<div class="items">{"".join(_items(described, dataset, shown))}</div>',
        *(_unread(model) for model in described),
    ]
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )
    path = storage.path(out) / "descriptions.html"
    files.write_bytes(path, page.encode())
    return path


def _answered(described: Sequence[Described], dataset: Dataset) -> list[int]:
    """Return the items that have an answer.

    Raises:
      InputError: none has.
    """
    answered = [
        n
        for n, key in enumerate(dataset.item_ids)
        if any(key in model.lines for model in described)
    ]
    if not answered:
        raise InputError(f"the answers are of other items than those of dataset {dataset.name}")
    return answered


def _text(value: Any) -> str:
    return html.escape(str(value))


def _models(described: Sequence[Described]) -> str:
    """Return an HTML table of the models, a row each.

    It has how often an answer has the form asked for, all slots, and not all of them; the number of
    distinct values; and the share that became `other`.
    """
    head = ("model", "answers", "form asked for", "all slots", "not read", "distinct values")
    rows = []
    for summary in (model.summary for model in described):
        answers = max(1, summary["answers"])
        other = np.mean([slot["other"] for slot in summary["slots"].values()])
        cells = (
            summary["name"],
            f"{summary['answers']:,}",
            f"{summary['strict'] / answers:.2%}",
            f"{summary['complete'] / answers:.2%}",
            f"{summary['answers'] - summary['complete']:,}",
            f"{summary['distinct_keywords']:,}",
            f"{other:.2%}",
        )
        rows.append("".join(f"<td>{_text(cell)}</td>" for cell in cells))
    titles = "".join(f"<th>{title}</th>" for title in (*head, "share of other"))
    lines = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{titles}</tr>{lines}</table></div>'


def _distributions(one: Described) -> str:
    """Draw a model's answer forms and commonest slot values as bars."""
    summary = one.summary
    parts = [f"<div><h3>Form of the answer</h3>{_bars(summary['forms'], FORMS)}</div>"]
    for slot, values in summary["slots"].items():
        counts = {word: count for word, count in values["counts"].items() if word != OTHER}
        shown = dict(list(counts.items())[:BARS])
        hidden = len(counts) - len(shown)
        rest = sum(counts.values()) - sum(shown.values())
        if hidden:
            shown[f"{hidden} more"] = rest
        shown[OTHER] = values["counts"].get(OTHER, 0)
        note = f'<p class="quiet">{values["distinct"]} distinct values</p>'
        parts.append(f"<div><h3>{_text(slot)}</h3>{_bars(shown)}{note}</div>")
    return f'<h2>{_text(summary["name"])}</h2><div class="columns">{"".join(parts)}</div>'


def _bars(counts: Mapping[str, int], meaning: Mapping[str, str] | None = None) -> str:
    longest = max([1, *counts.values()])
    lines = []
    for name, count in counts.items():
        kind = " other" if name == OTHER or name.endswith(" more") else ""
        title = _text((meaning or {}).get(name, name))
        lines.append(
            f'<div class="bar{kind}"><span class="name" title="{title}">'
            f'{_text(name)}</span><span class="track"><span class="fill" '
            f'style="width:{100 * count / longest:.1f}%"></span></span>'
            f'<span class="number">{count:,}</span></div>'
        )
    return "".join(lines)


def _items(described: Sequence[Described], dataset: Dataset, shown: Sequence[int]) -> list[str]:
    """Return a card for each item.

    A card has the picture, the title, each model's answer, and the true attributes if known.
    """
    pictures = [""] * len(shown)
    if any(dataset.images):
        pictures = _thumbnails([dataset.images[n] for n in shown])
    cards = []
    for n, picture in zip(shown, pictures, strict=True):
        key = dataset.item_ids[n]
        title = dataset.titles[n] or key
        answers = "".join(
            _said(model.summary["name"], model.lines[key])
            for model in described
            if key in model.lines
        )
        slots = {slot.casefold() for model in described for slot in model.summary["slots"]}
        truth = {k: v[n] for k, v in dataset.attributes.items() if k.casefold() in slots}
        if truth:
            answers += f'<div class="said"><b>In truth</b><br>{_chips(truth)}</div>'
        cards.append(
            f'<div class="item" id="item-{_text(key)}">{picture}<div class="text">'
            f"<h3>{_text(title)}</h3>{answers}</div></div>"
        )
    return cards


def _said(name: str, line: Mapping[str, Any]) -> str:
    status = f"{line['form']}; {line['reason']}" if line["reason"] else line["form"]
    bad = " bad" if line["reason"] else ""
    return (
        f'<div class="said"><b>{_text(name)}</b> <span class="form{bad}">{_text(status)}</span>'
        f'<div class="words">{_text(line["text"])}</div>{_chips(line["keywords"])}</div>'
    )


def _chips(values: Mapping[str, str]) -> str:
    return "".join(
        f'<span class="chip"><span class="quiet">{_text(slot)}</span> {_text(word)}</span>'
        for slot, word in values.items()
    )


def _thumbnails(paths: Sequence[str]) -> list[str]:
    """Return an <img> element for each path.

    An image that is missing or cannot be read becomes a box with the reason.
    """

    def make(image: Image.Image) -> str:
        image.thumbnail((SIDE, SIDE))
        content = io.BytesIO()
        image.save(content, "JPEG", quality=80)
        return base64.b64encode(content.getvalue()).decode()

    reasons = {n: "no image" for n, path in enumerate(paths) if not path}
    present = [n for n, path in enumerate(paths) if path]
    encoded: dict[int, str] = {}
    # A list hides the text from `decoded`, which takes a string for a reason of failure.
    batches = images.decoded([paths[n] for n in present], 64, lambda image: [make(image)])
    for rows, values, failed in batches:
        encoded |= {present[row]: value[0] for row, value in zip(rows, values, strict=True)}
        reasons |= {present[row]: reason for row, reason in failed.items()}
    return [
        f'<img class="picture" alt="" src="data:image/jpeg;base64,{encoded[n]}">'
        if n in encoded
        else f'<div class="picture none">{_text(reasons[n])}</div>'
        for n in range(len(paths))
    ]


def _unread(one: Described) -> str:
    """List the first answers with slots that could not be parsed.

    Each is shown with the reason.
    """
    bad = [line for line in one.lines.values() if line["reason"]]
    if not bad:
        return ""
    name, rows = _text(one.summary["name"]), []
    for line in bad[:UNREAD]:
        text = line["text"] if len(line["text"]) <= 300 else line["text"][:300] + " …"
        rows.append(
            f'<div class="said"><b>{_text(line["id"])}</b> <span class="form bad">'
            f'{_text(line["reason"])}</span><div class="words">{_text(text)}</div></div>'
        )
    head = f"<h2>Not all slots read: {name}, {len(bad):,} answers</h2>"
    return (
        head
        + (f'<p class="quiet">The first {UNREAD}.</p>' if len(bad) > UNREAD else "")
        + (f'<div class="columns">{"".join(rows)}</div>')
    )
