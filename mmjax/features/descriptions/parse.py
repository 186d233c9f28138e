"""What a vision-language model answered to a fill-in-the-blank prompt, as values of slots.

The prompts of arXiv 2508.04571 ask for `[Category] {Feeding}, [Age Group] {Infant}, …`. Models
follow that more or less; of the forms below every one occurs in released answers.
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
GROUP = re.compile(r"[\[{]([^\[\]{}]*)[\]}]")  # answers close one bracket with the other
EDGES = " \t\r\n,;.*|•[]{}\"'`“”‘’"


class Answer(NamedTuple):
    """One parsed answer."""

    form: str  # one of FORMS
    values: tuple[str | None, ...]  # one a slot, as the model wrote it
    reason: str = ""  # one of REASONS where a value is None


class _Mention(NamedTuple):
    """A label in an answer: of which slot, where it begins and ends with its brackets."""

    slot: int
    start: int
    end: int
    colon: bool


def parse(answer: str, slots: Sequence[str]) -> Answer:
    """The values of `slots` in an answer; never raises.

    Labels may be in any case and order. A slot that is named twice takes its first value. Where an
    answer has no labels, its values must be as many as the slots.
    """
    text = _unwrap(answer.strip())
    mentions = list(_mentions(text, slots))
    if mentions:
        form, values = _labelled(text, mentions, slots)
    else:
        form, values = _positional(text, len(slots))
    if all(values):
        return Answer(form, values)
    return Answer(form if any(values) else "none", values, _reason(text, mentions, len(slots)))


def slots_of_prompt(prompt: str) -> list[str]:
    """The labels that a prompt asks for, `[Label]`, in the order of their first mention."""
    return list(dict.fromkeys(label.strip() for label in re.findall(r"\[([^\[\]{}]+)\]", prompt)))


def infer_slots(answers: Iterable[str]) -> list[str]:
    """The labels of `[Label] {value}` or `Label: value` that a third of the labelled answers have.

    They come in the order in which answers mostly name them; [] where answers have no labels.
    """
    strict = re.compile(r"\[([^\[\]{}:]+)\]\s*\{|(?:^|[,\n])[\s*-]*([^\[\]{}:,\n]{1,40}):")
    spelt: Counter[str] = Counter()
    places: Counter[str] = Counter()
    labelled = 0
    for answer in answers:
        found = [(a or b).strip() for a, b in strict.findall(answer)]
        labelled += bool(found)
        for place, label in enumerate(dict.fromkeys(found)):
            spelt[label] += 1
            places[label] += place
    common = [label for label, count in spelt.items() if 3 * count >= labelled]
    return sorted(common, key=lambda label: places[label] / spelt[label])


def _unwrap(text: str) -> str:
    """The inside of a Python list literal, a part a line."""
    inside = re.fullmatch(r"\[\s*['\"](.*)['\"]\s*\]\.?", text, re.DOTALL)
    if inside is None:
        return text
    parts = re.split(r"['\"]\s*,\s*['\"]", inside[1])
    return "\n".join(re.sub(r"\\(['\"])", r"\1", part.replace("\\n", "\n")) for part in parts)


def _mentions(text: str, slots: Sequence[str]) -> Iterator[_Mention]:
    """Where labels stand as labels: before a colon, in brackets, or before a value's bracket."""
    places = {_squeeze(slot): place for place, slot in enumerate(slots)}
    longest = sorted(slots, key=len, reverse=True)  # so that `Pet Type` is not taken for `Type`
    names = "|".join(r"[\s_-]+".join(map(re.escape, re.split(r"[\s_-]+", s))) for s in longest)
    for found in re.finditer(rf"(?<!\w)(?:{names})(?!\w)", text, re.IGNORECASE):
        start, end = found.span()
        while start and text[start - 1] in " \t*_\"'-•":
            start -= 1
        while end < len(text) and text[end] in " \t*_\"'":
            end += 1
        left = text[start - 1] if start else "\n"
        right = text[end : end + 1]
        colon = right in (":", "=")
        opened, closed = left in "[{", right in ("]", "}")
        alone = right in ("{", "[") and left in "\n,;.:]}"
        if not (colon or (opened and closed) or alone):
            continue
        if opened:
            start -= 1
        if colon or closed:
            end += 1
        if closed and text[end : end + 1] == ":":
            end += 1
        yield _Mention(places[_squeeze(found[0])], start, end, colon and not opened)


def _squeeze(label: str) -> str:
    return re.sub(r"[\s_-]+", " ", label).casefold()


def _labelled(
    text: str, mentions: list[_Mention], slots: Sequence[str]
) -> tuple[str, tuple[str | None, ...]]:
    values: list[str | None] = [None] * len(slots)
    for mention, (start, end) in zip(mentions, _between(mentions, len(text))[1:], strict=True):
        if values[mention.slot] is None:
            values[mention.slot] = _value(text[start:end], last=end == len(text))
    # What stands before the first label may be the values of the slots before it.
    first = min(mention.slot for mention in mentions)
    first += values[first] is None
    before = _leading(text[: mentions[0].start], first)
    if before and not any(values[:first]):
        return "partial", (*before, *values[first:])
    if not all(values):
        # `v {Label} {v} …`: the first label stands behind its value, others may be left out.
        bare = "".join(text[one:two] for one, two in _between(mentions, len(text)))
        found = _leading(bare, len(slots))
        rest = [place for place, value in enumerate(values) if value and place != mentions[0].slot]
        if found and all(found[place] == values[place] for place in rest):
            return "partial", found
    return _labelled_form(text, mentions, slots), tuple(values)


def _between(mentions: list[_Mention], length: int) -> list[tuple[int, int]]:
    """The spans of a text that no label takes."""
    starts = [0, *(mention.end for mention in mentions)]
    return list(zip(starts, [*(mention.start for mention in mentions), length], strict=True))


def _labelled_form(text: str, mentions: list[_Mention], slots: Sequence[str]) -> str:
    strict = r"[\s,]*".join(rf"\[{re.escape(slot)}\] ?{{[^\[\]{{}}]+}}" for slot in slots)
    if re.fullmatch(rf"{strict}\s*\.?", text):
        return "strict"
    if not all(mention.colon for mention in mentions):
        return "brackets"
    gaps = [text[one.end : other.start] for one, other in pairwise(mentions)]
    return "lines" if gaps and all("\n" in gap for gap in gaps) else "line"


def _positional(text: str, count: int) -> tuple[str, tuple[str | None, ...]]:
    nothing = (None,) * count
    if GROUP.search(text):
        return "positional", _leading(text, count) or nothing
    parts = [re.sub(r"^\s*([-•*]|\d+[.)])\s", "", part) for part in re.split(r"[,;\n]", text)]
    parts = [_trim(part) for part in parts]
    parts = [part for part in parts if part]
    good = len(parts) == count and all(len(part.split()) <= WORDS for part in parts)
    return "list", tuple(parts) if good else nothing


def _leading(text: str, count: int) -> tuple[str, ...]:
    """`count` values: in brackets each, or the first one without; () where they are not so many."""
    values = [value for group in GROUP.findall(text) if (value := _trim(group))]
    opening = re.search(r"[\[{]", text)
    bare = text[: opening.start()] if opening else text
    if len(values) == count - 1 and not bare.rstrip().endswith(":"):
        bare = _trim(bare)
        values = [bare, *values] if 0 < len(bare.split()) <= WORDS else values
    return tuple(values) if len(values) == count else ()


def _value(text: str, *, last: bool) -> str | None:
    """The value in what follows a label: in brackets, or the rest of the line."""
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
