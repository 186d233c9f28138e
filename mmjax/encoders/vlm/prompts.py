"""Prompts for vision-language models: a text file with slots becomes rows of tokens and images.

`{image}` stands for the item's image and must be there once; `{title}`, `{description}` and
`{text}` for what is written about the item. Any other brace is a brace: the papers' prompts use
them. The text is put into the checkpoint's own chat template as what the user says.

What stands before the first slot is the same for every item: it is tokenised apart as the prefix,
and read by the model once.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmjax.core.errors import InputError
from mmjax.encoders.core import Batch
from mmjax.encoders.inputs import images
from mmjax.encoders.inputs.pixels import Options
from mmjax.encoders.vlm.lvlm import Prompts, bucket, pad
from mmjax.encoders.vlm.qwen_vl import positions

SLOTS = ("title", "description", "text")  # besides {image}
IMAGE, WORDS = "\ue000", "\ue001"  # private characters that stand for slots inside the template
SPECIAL = re.compile(r"<\|(.*?)\|>")


class Family(NamedTuple):
    """How one family of models shows images to its decoder."""

    around: tuple[str, str]  # what the prompt says before and behind an image's tokens
    image_id: int  # the id that stands where an image token does
    view: Callable[[Any], Any]  # PIL image -> its arrays
    shape: Callable[[Any], tuple[int, int] | int]  # of a view: rows and columns of tokens, or count
    collate: Callable[[Sequence[Any], int], Any]  # views, B -> one batch of arrays [B, ...]
    window: int  # tokens that the decoder can read, its answer included
    begin: str = ""  # a special token before everything


@dataclass(frozen=True)
class Template:
    """A prompt in token ids: the shared prefix and what comes behind it, in pieces."""

    tokenizer: Any
    family: Family
    pieces: tuple[str, ...]  # of text, between slots; the first begins behind the prefix
    slots: tuple[str, ...]  # between the pieces
    prefix: tuple[int, ...]
    digest: str

    @property
    def modality(self) -> str:
        """What it reads of an item."""
        words = dict.fromkeys(slot for slot in self.slots if slot != "image")
        return "_".join(["image", *words])

    def fill(self, words: dict[str, str], count: int) -> tuple[np.ndarray, list[int]]:
        """Ids [L] behind the prefix with `count` image tokens, and how many are before and behind.

        Args:
          words: slot -> what is written there; what looks like a special token in it is none.
        """
        sides = [""]
        for piece, slot in zip(self.pieces, (*self.slots, None), strict=True):
            sides[-1] += piece
            if slot == "image":
                sides.append("")
            elif slot:
                sides[-1] += SPECIAL.sub(r"<\1>", words.get(slot, ""))
        before, behind = (
            self.tokenizer(side, add_special_tokens=False)["input_ids"] for side in sides
        )
        ids = np.array([*before, *[self.family.image_id] * count, *behind], np.int32)
        return ids, [len(before), len(behind)]


def read(path: str | Path) -> str:
    """A prompt file's text.

    Raises:
      InputError: it cannot be read, or does not have `{image}` once.
    """
    try:
        text = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"prompt {path} cannot be read: {error}") from None
    if text.count("{image}") != 1:
        raise InputError(
            f"prompt {path} has {text.count('{image}')} places for the image; write {{image}} once "
            "where the model shall see it"
        )
    return text


def template(tokenizer: Any, text: str, family: Family, folder: Path) -> Template:
    """A prompt in the checkpoint's chat template.

    Raises:
      InputError: the tokenizer has no chat template or lacks the tokens around an image, or the
        prompt alone is longer than the model's window.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(f"{folder} has no chat template, so it is no model to be asked")
    for token in SPECIAL.findall("".join(family.around)):
        if tokenizer.convert_tokens_to_ids(f"<|{token}|>") in (None, tokenizer.unk_token_id):
            raise InputError(f"the tokenizer of {folder} lacks <|{token}|>, which surrounds images")
    names = re.findall("{(image|" + "|".join(SLOTS) + ")}", text)
    marked = re.sub("{(" + "|".join(SLOTS) + ")}", WORDS, text)
    marked = marked.replace("{image}", family.around[0] + IMAGE + family.around[1])
    said = tokenizer.apply_chat_template(
        [{"role": "user", "content": marked}], tokenize=False, add_generation_prompt=True
    )
    pieces = re.split(f"[{IMAGE}{WORDS}]", family.begin + said)
    if len(pieces) != len(names) + 1:
        raise InputError(f"the chat template of {folder} does not pass the prompt on as it is")
    prefix, rest = _split(tokenizer, pieces[0], names[0] == "image")
    made = Template(
        tokenizer,
        family,
        (rest, *pieces[1:]),
        tuple(names),
        tuple(prefix),
        hashlib.sha256(text.encode()).hexdigest()[:16],
    )
    length = len(prefix) + len(made.fill({}, 1)[0])
    if length >= family.window:
        raise InputError(f"the prompt takes {length} tokens; {folder} reads {family.window}")
    return made


def _split(tokenizer: Any, text: str, whole: bool) -> tuple[list[int], str]:
    """Ids that begin every row, and the text behind them.

    A special token ends what the tokenizer looks at together, so that the ids before it do not
    depend on what follows; other text may grow together with a slot's.
    """
    if whole:
        return tokenizer(text, add_special_tokens=False)["input_ids"], ""
    ends = [match.end() for match in SPECIAL.finditer(text)]
    end = ends[-1] if ends else 0
    return tokenizer(text[:end], add_special_tokens=False)["input_ids"], text[end:]


class Row(NamedTuple):
    """One item's prompt behind the prefix."""

    place: int
    ids: np.ndarray  # int32 [L]
    positions: np.ndarray  # int32 [3, L]
    view: Any
    tokens: int  # of the image


def batches(
    made: Template, values: Sequence[Any], size: int, options: Options, room: int
) -> Iterator[Batch]:
    """Batches of `Prompts` padded on the right, rows of like length together, the longest first.

    Args:
      values: paths, or tuples of a path and the words of the template's slots.
      room: tokens to leave for the answer.
    """
    many = made.modality != "image"
    names = made.modality.split("_")[1:]
    paths = [value[0] if many else value for value in values]
    words = [dict(zip(names, value[1:], strict=True)) if many else {} for value in values]
    limit = made.family.window - len(made.prefix) - room
    rows: list[Row] = []
    failed: dict[int, str] = {}
    for places, views, broken in images.decoded(paths, size, made.family.view, options):
        failed |= broken
        for place, view in zip(places.tolist(), views, strict=True):
            shape = made.family.shape(view)
            count = shape[0] * shape[1] if isinstance(shape, tuple) else shape
            ids, (before, behind) = made.fill(words[place], count)
            if len(ids) > limit:
                failed[place] = f"{len(ids)} tokens, {count} of them the image's, exceed {limit}"
                continue
            where = positions([before, shape, behind]) + len(made.prefix)
            rows.append(Row(place, ids, where, view, count))
    rows.sort(key=lambda row: (-row.tokens, -len(row.ids)))
    for start in range(0, max(len(rows), 1), size):
        some = rows[start : start + size]
        told = failed if start == 0 else {}
        yield Batch(np.array([row.place for row in some], int), stack(made, some, size), told)


def stack(made: Template, rows: Sequence[Row], size: int) -> tuple[Prompts, ...]:
    """One batch [size, ...] padded on the right, to a bucket; nothing where there are no rows."""
    if not rows:
        return ()
    length = bucket(max(len(row.ids) for row in rows))
    ids = pad(np.stack([pad(row.ids, length) for row in rows]), size)
    lengths = pad(np.array([len(row.ids) for row in rows]), size)
    real = np.arange(length)[None] < lengths[:, None]
    image = (ids == made.family.image_id) & real
    places = np.stack([pad(row.positions, length, axis=1) for row in rows])
    prompts = Prompts(
        ids=ids,
        seen=np.where(image, np.cumsum(image, axis=1) - 1, -1).astype(np.int32),
        positions=pad(places, size),
        real=real,
        images=made.family.collate([row.view for row in rows], size),
    )
    return (prompts,)
