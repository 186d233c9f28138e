"""Turn a prompt file with slots into batches of tokens and images.

`{image}` stands for the item's image and must occur once. `{title}`, `{description}` and `{text}`
stand for the item's texts. Other braces stay braces, because the papers' prompts use them. The
prompt becomes the user message of the checkpoint's chat template.

The text before the first slot is the same for all items. It is tokenised separately as the prefix,
and the model reads it once.
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
from mmjax.encoders.inputs.pixels import ImageOptions
from mmjax.encoders.vlm.lvlm import Prompts, bucket, pad
from mmjax.encoders.vlm.qwen_vl import positions

SLOTS = ("title", "description", "text")  # besides {image}
IMAGE, WORDS = "\ue000", "\ue001"  # private-use characters that mark slots in the chat template
SPECIAL = re.compile(r"<\|(.*?)\|>")


class Family(NamedTuple):
    """Image input of one model family."""

    around: tuple[str, str]  # text before and after an image's tokens
    image_id: int  # placeholder id of an image token
    view: Callable[[Any], Any]  # PIL image -> its arrays
    shape: Callable[[Any], tuple[int, int] | int]  # of a view: rows and columns, or count of tokens
    collate: Callable[[Sequence[Any], int], Any]  # views, B -> one batch of arrays [B, ...]
    window: int  # maximum tokens of the decoder, the answer included
    begin: str = ""  # a special token before the chat template


@dataclass(frozen=True)
class Template:
    """Tokenised prefix of a prompt and the text pieces after it."""

    tokenizer: Any
    family: Family
    pieces: tuple[str, ...]  # text between slots; the first piece follows the prefix
    slots: tuple[str, ...]  # between the pieces
    prefix: tuple[int, ...]
    digest: str

    @property
    def modality(self) -> str:
        """Modalities it reads, joined by underscores, as "image_title"."""
        words = dict.fromkeys(slot for slot in self.slots if slot != "image")
        return "_".join(["image", *words])

    def fill(self, words: dict[str, str], count: int) -> tuple[np.ndarray, list[int]]:
        """Build the ids after the prefix for one item.

        Args:
          words: slot -> its text; special tokens in it are neutralised.
          count: image tokens.

        Returns:
          Ids int32 [L]; the numbers of tokens before and after the image.
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
    """Read a prompt file.

    Raises:
      InputError: the file cannot be read, or does not contain `{image}` exactly once.
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
    """Put a prompt into the checkpoint's chat template.

    Args:
      tokenizer: of the checkpoint.
      text: the prompt, with slots.
      family: image input of the model.
      folder: of the checkpoint, for error messages.

    Raises:
      InputError: the tokenizer has no chat template or lacks the tokens around an image, the chat
        template changes the prompt, or the prompt without an answer fills the model's window.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(f"{folder} has no chat template, so it is no model to be asked")
    for token in SPECIAL.findall("".join(family.around)):
        if tokenizer.convert_tokens_to_ids(f"<|{token}|>") in (None, tokenizer.unk_token_id):
            raise InputError(f"the tokenizer of {folder} lacks <|{token}|>, which surrounds images")
    names = re.findall("{(image|" + "|".join(SLOTS) + ")}", text)
    marked = re.sub("{(" + "|".join(SLOTS) + ")}", WORDS, text)
    marked = marked.replace("{image}", family.around[0] + IMAGE + family.around[1])
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": marked}], tokenize=False, add_generation_prompt=True
    )
    pieces = re.split(f"[{IMAGE}{WORDS}]", family.begin + chat)
    if len(pieces) != len(names) + 1:
        raise InputError(f"the chat template of {folder} does not pass the prompt on as it is")
    prefix, rest = _split(tokenizer, pieces[0], names[0] == "image")
    result = Template(
        tokenizer,
        family,
        (rest, *pieces[1:]),
        tuple(names),
        tuple(prefix),
        hashlib.sha256(text.encode()).hexdigest()[:16],
    )
    length = len(prefix) + len(result.fill({}, 1)[0])
    if length >= family.window:
        raise InputError(f"the prompt takes {length} tokens; {folder} reads {family.window}")
    return result


def _split(tokenizer: Any, text: str, whole: bool) -> tuple[list[int], str]:
    """Split the text before the first slot into prefix and remainder.

    The prefix is token ids, the remainder text. The tokenizer never merges across a special token,
    so the ids up to the last one do not depend on later text. Text after it may merge with a slot's
    text. With `whole` all of it is the prefix.
    """
    if whole:
        return tokenizer(text, add_special_tokens=False)["input_ids"], ""
    ends = [match.end() for match in SPECIAL.finditer(text)]
    end = ends[-1] if ends else 0
    return tokenizer(text[:end], add_special_tokens=False)["input_ids"], text[end:]


class PromptRow(NamedTuple):
    """Prompt of one item, without the prefix."""

    place: int  # index of the input
    ids: np.ndarray  # int32 [L]
    positions: np.ndarray  # int32 [3, L]
    view: Any
    tokens: int  # of the image


def batches(
    made: Template, values: Sequence[Any], size: int, options: ImageOptions, room: int
) -> Iterator[Batch]:
    """Build right-padded batches of `Prompts`, sorted by decreasing length.

    Rows are sorted by image tokens, then by all tokens, so rows of a batch have similar lengths.

    Args:
      made: the prompt.
      values: paths, or tuples of a path and the texts of the template's slots.
      size: rows of a batch.
      options: how images are read.
      room: tokens to leave for the answer.
    """
    has_words = made.modality != "image"
    names = made.modality.split("_")[1:]
    paths = [value[0] if has_words else value for value in values]
    words = [dict(zip(names, value[1:], strict=True)) if has_words else {} for value in values]
    limit = made.family.window - len(made.prefix) - room
    rows: list[PromptRow] = []
    failed: dict[int, str] = {}
    for indices, views, broken in images.decoded(paths, size, made.family.view, options):
        failed |= broken
        for index, view in zip(indices.tolist(), views, strict=True):
            shape = made.family.shape(view)
            count = shape[0] * shape[1] if isinstance(shape, tuple) else shape
            ids, (before, behind) = made.fill(words[index], count)
            if len(ids) > limit:
                failed[index] = f"{len(ids)} tokens, {count} of them the image's, exceed {limit}"
                continue
            row_positions = positions([before, shape, behind]) + len(made.prefix)
            rows.append(PromptRow(index, ids, row_positions, view, count))
    rows.sort(key=lambda row: (-row.tokens, -len(row.ids)))
    for start in range(0, max(len(rows), 1), size):
        batch_rows = rows[start : start + size]
        reported = failed if start == 0 else {}
        yield Batch(
            np.array([row.place for row in batch_rows], int),
            stack(made, batch_rows, size),
            reported,
        )


def stack(made: Template, rows: Sequence[PromptRow], size: int) -> tuple[Prompts, ...]:
    """Stack rows into one right-padded batch [size, ...].

    The length is padded to a bucket size. No rows give an empty tuple.
    """
    if not rows:
        return ()
    length = bucket(max(len(row.ids) for row in rows))
    ids = pad(np.stack([pad(row.ids, length) for row in rows]), size)
    lengths = pad(np.array([len(row.ids) for row in rows]), size)
    real = np.arange(length)[None] < lengths[:, None]
    image = (ids == made.family.image_id) & real
    row_positions = np.stack([pad(row.positions, length, axis=1) for row in rows])
    prompts = Prompts(
        ids=ids,
        seen=np.where(image, np.cumsum(image, axis=1) - 1, -1).astype(np.int32),
        positions=pad(row_positions, size),
        real=real,
        images=made.family.collate([row.view for row in rows], size),
    )
    return (prompts,)
