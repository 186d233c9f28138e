"""Batch image-text pairs for towers of modality "image_text".

An input is (path, text).
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.encoders import outputs
from mmjax.encoders.core import Batch, Batches, Tower, pad_to
from mmjax.encoders.inputs import text
from mmjax.encoders.inputs.images import pixel_batches
from mmjax.encoders.inputs.pixels import ImageOptions, Pixels
from mmjax.encoders.inputs.text import TextOptions

Pair = tuple[str, str]


def tower(
    graph: nnx.GraphDef,
    params: Any,
    forward: Callable[..., tuple[outputs.Outputs, jax.Array | None]],
    *,
    folder: Path,
    image: ImageOptions,
    text_options: TextOptions,
    window: int,
    layers: Sequence[str | int] = (),
    default: str,
    about: dict[str, Any],
) -> Tower:
    """Return a Tower that reads image-text pairs.

    They are prepared by the checkpoint's image processor and tokenizer.

    Args:
      forward: (module, pixels [B, H, W, 3], ids [B, L], mask [B, L]) -> the outputs by name and
        the mask of those whose length depends on the text's.
      window: the longest text in tokens that the model can read.

    Raises:
      InputError: what `Pixels.read`, `text.read_words` and `outputs.tower` raise.
    """
    pixels = Pixels.read(folder, image)
    words = text.read_words(folder, text_options, window, text.Recipe(None, False, None))
    dtype = jax.tree.leaves(params)[0].dtype

    def run(
        module: nnx.Module, raw: jax.Array, ids: jax.Array, mask: jax.Array
    ) -> tuple[outputs.Outputs, jax.Array | None]:
        return forward(module, pixels.normalize(raw).astype(dtype), ids, mask)

    def pictures(paths: Sequence[str], size: int) -> Iterator[Batch]:
        return pixel_batches(paths, size, pixels.apply, pixels.size, image)

    def sentences(texts: Sequence[str], size: int) -> Iterator[Batch]:
        return text.token_batches(words.tokenizer, texts, size, words.length, text_options)

    def batches(pairs: Sequence[Pair], size: int) -> Iterator[Batch]:
        return pair_batches(pairs, size, pictures, sentences)

    return outputs.tower(
        "image_text",
        graph,
        params,
        run,
        batches=batches,
        example=(
            jax.ShapeDtypeStruct((1, *pixels.size, 3), jnp.uint8),
            outputs.integers(1, 16),
            outputs.integers(1, 16),
        ),
        layers=layers,
        default=default,
        about={**about, "preprocessing": f"{pixels}; {words}"},
    )


def pair_batches(
    pairs: Sequence[Pair], size: int, pictures: Batches, sentences: Batches
) -> Iterator[Batch]:
    """Yield batches of the image arrays followed by the text arrays.

    Texts of similar length share a batch. A pair whose image cannot be read is left out and
    reported with its batch. An empty text counts as a text: it has the tokens that the tokenizer
    puts around every text.

    Args:
      pictures: batches of paths in their order, `size` to each but the last.
      sentences: batches of texts in an order of its own, `size` to each but the last.
    """
    if not pairs:
        return
    paths, texts = zip(*pairs, strict=True)
    token_batches = list(sentences(texts, size))  # all are tokenised at once anyway
    order = np.concatenate([batch.rows for batch in token_batches])
    pixels = pictures([paths[i] for i in order], size)
    for start, words, batch in zip(range(0, len(order), size), token_batches, pixels, strict=True):
        rows = order[batch.rows]
        arrays = (pad_to(array[batch.rows - start], size) for array in words.arrays)
        failed = {int(order[i]): why for i, why in batch.failed.items()}
        yield Batch(rows, (*batch.arrays, *arrays), failed, words.cut)
