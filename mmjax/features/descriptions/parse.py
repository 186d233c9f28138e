"""Parser of a vision-language model's fill-in-the-blank answers.

The prompts of arXiv 2508.04571 ask for `[Category] {Feeding}, [Age Group] {Infant}, …`. Models
follow that format loosely; each of the forms below occurs in released answers.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

# Names of the forms and what each looks like, the strictest first.
FORMS = {
    "strict": "[Slot] {value}, …, all slots in order and nothing else but a period",
    "line": "Slot: value, … on one line",
    "lines": "Slot: value on a line each",
    "brackets": "labels in other brackets or none, or text before: {Slot} {v}, [Slot: v], Slot {v}",
    "partial": "labels left out or behind their value: v {value} [Slot] {v} …, v {Slot} {v} …",
    "positional": "values alone: {v} {v} …, value {v} …, [] {v} …",
    "list": "v, v, … or ['v', 'v', …]",
    "none": "none of these",
}
# Why an answer gives no value to some slot.
REASONS = {
    "empty": "no text at all",
    "truncated": "it ends inside brackets or after a label",
    "repetition": "one word over and over",
    "too few values": "labels or values for some of the slots only",
    "too many values": "more values than slots and no labels to tell them",
    "free text": "neither labels nor a list of values",
}
WORDS = 6  # of a value that stands without brackets or label; longer ones are sentences
GROUP = re.compile(r"[\[{]([^\[\]{}]*)[\]}]")  # answers mix the two kinds of brackets
EDGES = " \t\r\n,;.*|•[]{}\"'`“”‘’"


class ParsedAnswer(NamedTuple):
    """One parsed answer."""

    form: str  # one of FORMS
    values: tuple[str | None, ...]  # one a slot, as the model wrote it
    reason: str = ""  # one of REASONS where a value is None


class _Mention(NamedTuple):
    """A label in an answer: its slot and its span.

    The span includes the label's brackets.
    """

    slot: int
    start: int
    end: int
    colon: bool


def parse(answer: str, slots: Sequence[str]) -> ParsedAnswer:
    """Read the values of `slots` from an answer.

    Never raises. Labels may be in any case and order. A slot that is named twice takes its first
    value. Where an answer has no labels, it must have as many values as there are slots.
    """
    text = _unwrap(answer.strip())
    mentions = list(_mentions(text, slots))
    if mentions:
        form, values = _labelled(text, mentions, slots)
    else:
        form, values = _positional(text, len(slots))
    if all(values):
        return ParsedAnswer(form, values)
    return ParsedAnswer(
        form if any(values) else "none", values, _reason(text, mentions, len(slots))
    )


def slots_of_prompt(prompt: str) -> list[str]:
    """Return the labels `[Label]` of a prompt.

    They are distinct and in the order of their first mention.
    """
    return list(dict.fromkeys(label.strip() for label in re.findall(r"\[([^\[\]{}]+)\]", prompt)))


def infer_slots(answers: Iterable[str]) -> list[str]:
    """Return the labels that at least a third of answers have.

    Only answers with labels count, `[Label] {value}` or `Label: value`. The labels come in the
    order in which answers mostly name them; [] where no answer has labels.
    """
    strict = re.compile(r"\[([^\[\]{}:]+)\]\s*\{|(?:^|[,\n])[\s*-]*([^\[\]{}:,\n]{1,40}):")
    spelt: Counter[str] = Counter()
    positions: Counter[str] = Counter()
    labelled = 0
    for answer in answers:
        labels = [(a or b).strip() for a, b in strict.findall(answer)]
        labelled += bool(labels)
        for position, label in enumerate(dict.fromkeys(labels)):
            spelt[label] += 1
            positions[label] += position
    common = [label for label, count in spelt.items() if 3 * count >= labelled]
    return sorted(common, key=lambda label: positions[label] / spelt[label])


def _unwrap(text: str) -> str:
    """Return the inside of a Python list literal, one part per line.

    Other texts are returned as they are.
    """
    inside = re.fullmatch(r"\[\s*['\"](.*)['\"]\s*\]\.?", text, re.DOTALL)
    if inside is None:
        return text
    parts = re.split(r"['\"]\s*,\s*['\"]", inside[1])
    return "\n".join(re.sub(r"\\(['\"])", r"\1", part.replace("\\n", "\n")) for part in parts)


def _mentions(text: str, slots: Sequence[str]) -> Iterator[_Mention]:
    """Yield the labels of a text that stand as labels.

    They stand before a colon, in brackets, or before the bracket of a value.
    """
    slot_numbers = {_squeeze(slot): number for number, slot in enumerate(slots)}
    longest = sorted(slots, key=len, reverse=True)  # so that `Pet Type` is not taken for `Type`
    names = "|".join(r"[\s_-]+".join(map(re.escape, re.split(r"[\s_-]+", s))) for s in longest)
    for match in re.finditer(rf"(?<!\w)(?:{names})(?!\w)", text, re.IGNORECASE):
        start, end = match.span()
        while start and text[start - 1] in " \t*_\"'-•":
            start -= 1
        while end < len(text) and text[end] in " \t*_\"'":
            end += 1
        left = text[start - 1] if start else "\n"
        right = text[end : end + 1]
        colon = right in (":", "=")
        opened, closed = left in "[{", right in ("]", "}")
        unbracketed = right in ("{", "[") and left in "\n,;.:]}"
        if not (colon or (opened and closed) or unbracketed):
            continue
        if opened:
            start -= 1
        if colon or closed:
            end += 1
        if closed and text[end : end + 1] == ":":
            end += 1
        yield _Mention(slot_numbers[_squeeze(match[0])], start, end, colon and not opened)


def _squeeze(label: str) -> str:
    return re.sub(r"[\s_-]+", " ", label).casefold()


def _labelled(
    text: str, mentions: list[_Mention], slots: Sequence[str]
) -> tuple[str, tuple[str | None, ...]]:
    values: list[str | None] = [None] * len(slots)
    for mention, (start, end) in zip(mentions, _between(mentions, len(text))[1:], strict=True):
        if values[mention.slot] is None:
            values[mention.slot] = _value(text[start:end], last=end == len(text))
    # The text before the first label may hold the values of the slots before it.
    first = min(mention.slot for mention in mentions)
    first += values[first] is None
    before = _leading(text[: mentions[0].start], first)
    if before and not any(values[:first]):
        return "partial", (*before, *values[first:])
    if not all(values):
        # `v {Label} {v} …`: the first label stands behind its value, others may be left out.
        bare = "".join(text[begin:stop] for begin, stop in _between(mentions, len(text)))
        leading = _leading(bare, len(slots))
        rest = [slot for slot, value in enumerate(values) if value and slot != mentions[0].slot]
        if leading and all(leading[slot] == values[slot] for slot in rest):
            return "partial", leading
    return _labelled_form(text, mentions, slots), tuple(values)


def _between(mentions: list[_Mention], length: int) -> list[tuple[int, int]]:
    """Return the spans of a text outside of its labels."""
    starts = [0, *(mention.end for mention in mentions)]
    return list(zip(starts, [*(mention.start for mention in mentions), length], strict=True))


def _labelled_form(text: str, mentions: list[_Mention], slots: Sequence[str]) -> str:
    strict = r"[\s,]*".join(rf"\[{re.escape(slot)}\] ?{{[^\[\]{{}}]+}}" for slot in slots)
    if re.fullmatch(rf"{strict}\s*\.?", text):
        return "strict"
    if not all(mention.colon for mention in mentions):
        return "brackets"
    gaps = [text[previous.end : following.start] for previous, following in pairwise(mentions)]
    return "lines" if gaps and all("\n" in gap for gap in gaps) else "line"


def _positional(text: str, count: int) -> tuple[str, tuple[str | None, ...]]:
    missing = (None,) * count
    if GROUP.search(text):
        return "positional", _leading(text, count) or missing
    parts = [re.sub(r"^\s*([-•*]|\d+[.)])\s", "", part) for part in re.split(r"[,;\n]", text)]
    parts = [_trim(part) for part in parts]
    parts = [part for part in parts if part]
    valid = len(parts) == count and all(len(part.split()) <= WORDS for part in parts)
    return "list", tuple(parts) if valid else missing


def _leading(text: str, count: int) -> tuple[str, ...]:
    """Return `count` values of a text, or () if the number differs.

    Values are in brackets; the first one may be without.
    """
    values = [value for group in GROUP.findall(text) if (value := _trim(group))]
    opening = re.search(r"[\[{]", text)
    bare = text[: opening.start()] if opening else text
    if len(values) == count - 1 and not bare.rstrip().endswith(":"):
        bare = _trim(bare)
        values = [bare, *values] if 0 < len(bare.split()) <= WORDS else values
    return tuple(values) if len(values) == count else ()


def _value(text: str, *, last: bool) -> str | None:
    """Return the value in the text after a label.

    It is in brackets, or the rest of the line.
    """
    group = GROUP.search(text)
    if group:
        return _trim(group[1]) or None
    if _unclosed(text):
        return None
    bare = _trim(text).split("\n")[0]
    if last:  # a sentence may follow
        bare = re.split(r"\.\s", bare)[0]
    return _trim(bare) or None


def _trim(text: str) -> str:
    return text.strip().strip(EDGES).strip()


def _unclosed(text: str) -> bool:
    return max(text.rfind("["), text.rfind("{")) > max(text.rfind("]"), text.rfind("}"))


def _reason(text: str, mentions: list[_Mention], count: int) -> str:
    words = text.casefold().split()
    if not words:
        return "empty"
    if len(words) > 12 and len(set(words)) * 4 <= len(words):
        return "repetition"
    if _unclosed(text) or (mentions and not _trim(text[mentions[-1].end :])):
        return "truncated"
    groups = len(GROUP.findall(text))
    if mentions or groups:
        return "too many values" if groups > count and not mentions else "too few values"
    parts = [part for part in re.split(r"[,;\n]", text) if part.strip()]
    if len(parts) < 2 or any(len(part.split()) > WORDS for part in parts):
        return "free text"
    return "too many values" if len(parts) > count else "too few values"
