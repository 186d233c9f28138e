"""Draw a few items with a model's descriptions as one picture."""

import contextlib
import io
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from mmjax.core import files, storage
from mmjax.core.errors import InputError
from mmjax.data.dataset import Dataset
from mmjax.encoders.inputs import images
from mmjax.report.descriptions.gallery import Described
from mmjax.report.runs import INK, QUIET

WRONG = "#b45309"
COLUMNS = 3


def write(
    one: Described, dataset: Dataset, out: str | Path, *, items: int = 9, seed: int = 0
) -> Path:
    """Write `descriptions.png` into the folder `out`.

    Each item's image has its slots beside it. A value that is known to be wrong, by the dataset's
    attributes, is marked with the true one.

    Raises:
      InputError: no item with an image has an answer.
    """
    index_of = {key: n for n, key in enumerate(dataset.item_ids)}
    answered = [
        n for key in one.lines if (n := index_of.get(key)) is not None and dataset.images[n]
    ]
    pictures: dict[int, Image.Image] = {}
    for item in np.random.default_rng(seed).permutation(answered).tolist():
        with contextlib.suppress(*images.DAMAGE):
            pictures[item] = images.read(dataset.images[item], 10**8)
        if len(pictures) == items:
            break
    if not pictures:
        raise InputError(f"no item of dataset {dataset.name} has an image and an answer")
    truth = {name.casefold(): values for name, values in dataset.attributes.items()}
    rows = -(-len(pictures) // COLUMNS)
    size = (4.1 * COLUMNS, 1.75 * rows + 0.5)
    with plt.rc_context({"font.size": 10, "text.color": INK}):
        figure, axes = plt.subplots(
            rows, 2 * COLUMNS, figsize=size, squeeze=False, layout="constrained"
        )
        for axis in axes.flat:
            axis.set_axis_off()
        for number, item in enumerate(sorted(pictures)):
            row, column = divmod(number, COLUMNS)
            left, right = axes[row][2 * column : 2 * column + 2]
            left.imshow(pictures[item])
            line = one.lines[dataset.item_ids[item]]
            slot_lines = [
                _said(slot, value, truth.get(slot.casefold(), {item: None})[item])
                for slot, value in line["values"].items()
            ]
            if not any(line["values"].values()):
                slot_lines = [(text, QUIET) for text in textwrap.wrap(line["text"], 28)[:6]]
            for height, (text, colour) in enumerate(slot_lines):
                right.text(0, 0.92 - 0.18 * height, text, color=colour, va="top")
        figure.suptitle(
            f"What {one.summary['name']} says of {dataset.name}",
            x=0.01,
            ha="left",
            fontsize=11,
            fontweight="bold",
        )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=130, facecolor="white")
        plt.close(figure)
    path = storage.path(out) / "descriptions.png"
    files.write_bytes(path, buffer.getvalue())
    return path


def _said(slot: str, value: str | None, true: str | None) -> tuple[str, str]:
    """Return a line of text and its colour."""
    if true is not None and str(value).casefold() != true.casefold():
        return f"{slot}: {value or 'nothing'} (it is {true})", WRONG
    return f"{slot}: {value or '–'}", INK
