"""Tokenize texts into batches and read sentence-transformers recipes.

All text towers share this module. Batches come in a few shapes only.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from mmjax.core.errors import InputError
from mmjax.encoders import outputs
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.checkpoints.dense import put_behind
from mmjax.encoders.checkpoints.weights import digest
from mmjax.encoders.core import Batch, Tower, pad_to
from mmjax.encoders.inputs.cleaning import clean

POOLINGS = ("mean", "cls", "max", "pooler")
PADDINGS = ("bucket", "max_length")
# Heads of pre-training and of tasks, under all their names: no tower has them.
HEADS = hub.Rule(r"(?:cls|lm_head|(?:pre_)?classifier|qa_outputs|vocab_\w+)\..*", None)
# Padding costs time: twice the length takes more than twice as long. Each bucket costs about a
# second of compilation, once. These lengths are a compromise.
BUCKETS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)


@dataclass(frozen=True)
class TextOptions:
    """Text settings of the user; None keeps the checkpoint's value."""

    pooling: str | None = None  # of POOLINGS
    tokenizer: str | None = None  # folder, packaged name or hub id, instead of the checkpoint's
    max_length: int | None = None  # tokens at which a text is cut
    padding: str = "bucket"  # to the next of BUCKETS, or to max_length as Ducho does
    clean: bool = False  # contractions, digits and punctuation first (see `cleaning`)

    def __post_init__(self) -> None:
        if self.padding not in PADDINGS:
            raise InputError(f"padding {self.padding!r} is none of {', '.join(PADDINGS)}")


class Recipe(NamedTuple):
    """Steps from token states to one vector of a text."""

    pooling: str | None  # of `outputs.POOLINGS`; None is the model's own pooler
    normalize: bool
    max_length: int | None
    dense: tuple[Path, ...] = ()  # folders of layers behind the pooling, in their order

    def __str__(self) -> str:
        layers = [f"dense {folder.name} ({digest(folder)})" for folder in self.dense]
        how = "normalized" if self.normalize else "not normalized"
        return ", ".join([self.pooling or "pooler", *layers, how])


class Words(NamedTuple):
    """Tokenizer, length limit in tokens, and their description."""

    tokenizer: Any
    length: int
    about: str

    def __str__(self) -> str:
        return self.about


def read_recipe(folder: Path, pooling: str | None = None) -> Recipe:
    """Read pooling, normalisation and length from sentence-transformers' files.

    They lie beside the model. Without them the recipe is the mean, not normalised.

    Args:
      pooling: overrides what the files say.

    Raises:
      InputError: an unknown pooling, or a module that mmjax does not have.
    """
    if pooling is not None and pooling not in POOLINGS:
        raise InputError(f"pooling {pooling!r} is none of {', '.join(POOLINGS)}")
    modules = _read_list(folder / "modules.json")
    if modules is None:
        return Recipe(_own(pooling or "mean"), False, None)
    file_pooling, normalize, dense = "mean", False, []
    for module in modules:
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            file_pooling = _pooling_of(folder / module["path"] / "config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind == "Dense" and not normalize:
            dense.append(folder / module["path"])
        elif kind != "Transformer":
            after = " after its Normalize" if normalize else ""
            raise InputError(f"{folder}/modules.json has a {kind!r}{after}, which mmjax lacks")
    length = None
    if (folder / "sentence_bert_config.json").exists():
        config = json.loads((folder / "sentence_bert_config.json").read_text())
        length = config.get("max_seq_length")
    return Recipe(_own(pooling or file_pooling), normalize, length, tuple(dense))


def tower(
    graph: nnx.GraphDef,
    params: Any,
    forward: Callable[..., outputs.Outputs],
    *,
    folder: Path,
    options: TextOptions,
    window: int,
    layers: Sequence[str | int] = (),
    default: str | None = None,
    about: dict[str, Any],
) -> Tower:
    """Return a Tower that reads texts through the checkpoint's tokenizer.

    Without a `default` layer it is `sentence_embedding`: the last hidden state, pooled and perhaps
    normalised as the folder's sentence-transformers files say. It is added to the outputs of
    `forward`.

    Args:
      forward: (module, ids [B, L], mask [B, L]) -> the outputs by name.
      window: the longest text in tokens that the model can read. The tokenizer's own limit and
        `options.max_length`, or else the recipe's limit, shorten it.

    Raises:
      InputError: what `hub.tokenizer`, `read_recipe` and `outputs.tower` raise.
    """
    recipe = read_recipe(folder, options.pooling)
    words = read_words(folder, options, window, recipe)
    graph, params = put_behind(graph, params, recipe.dense)

    def run(module: Any, ids: jax.Array, mask: jax.Array) -> tuple[outputs.Outputs, jax.Array]:
        layer_outputs = forward(module.model, ids, mask)
        if "last_hidden_state" in layer_outputs and default is None:
            layer_outputs["sentence_embedding"] = embed(layer_outputs, mask, recipe, module.dense)
        return layer_outputs, mask

    def batches(texts: Sequence[str], size: int) -> Iterator[Batch]:
        return token_batches(words.tokenizer, texts, size, words.length, options)

    return outputs.tower(
        "text",
        graph,
        params,
        run,
        batches=batches,
        example=(outputs.integers(1, 16), outputs.integers(1, 16)),
        layers=layers,
        default=default or "sentence_embedding",
        pooling=recipe.pooling or "mean",
        about={**about, "preprocessing": str(words), "sentence_embedding": str(recipe)},
    )


def read_words(folder: Path, options: TextOptions, window: int, recipe: Recipe) -> Words:
    """Return the tokenizer and the smallest of the length limits.

    The tokenizer is that of `options`, or else the checkpoint's. The limits are `window`, the
    tokenizer's own and `options.max_length`, or else the recipe's.

    Raises:
      InputError: no usable tokenizer, or `options.max_length` is more than the model reads.
    """
    tokenizer = hub.tokenizer(hub.settings(options.tokenizer) if options.tokenizer else folder)
    length = min(options.max_length or window, window, tokenizer.model_max_length)
    if recipe.max_length and not options.max_length:
        length = min(length, recipe.max_length)
    if options.max_length and options.max_length > length:
        raise InputError(f"max_length {options.max_length} is over the model's {length} tokens")
    cleaned = "cleaned, " if options.clean else ""
    whose = options.tokenizer or "the checkpoint"
    return Words(tokenizer, length, f"{cleaned}tokenizer of {whose}, cut at {length} tokens")


def embed(
    found: Mapping[str, Any],
    mask: jax.Array | np.ndarray | None,
    recipe: Recipe,
    dense: Iterable[Callable[[jax.Array], jax.Array]],
) -> jax.Array:
    """Return one vector per text [B, F] by the recipe.

    It is pooled from last_hidden_state, or is pooler_output.

    Args:
      dense: the layers of `recipe.dense`.

    Raises:
      InputError: the recipe wants the model's pooler, which it does not have.
    """
    if recipe.pooling is not None:
        vectors = outputs.pool(found["last_hidden_state"], mask, recipe.pooling)
    elif "pooler_output" in found:
        vectors = found["pooler_output"]
    else:
        raise InputError("the model has no pooler; pool by mean, cls or max")
    for layer in dense:
        vectors = layer(vectors)
    return outputs.normalize_rows(vectors) if recipe.normalize else vectors


def token_batches(
    tokenizer: Any, texts: Sequence[str], size: int, max_length: int, options: TextOptions
) -> Iterator[Batch]:
    """Yield batches of ids [B, L] and mask [B, L].

    Texts of similar length share a batch. L is the first of `BUCKETS` (or `max_length`) that holds
    the batch's longest text; longer texts are cut at `max_length` tokens. So there are as many
    programs as buckets in use, whatever the texts. With padding `max_length`, L is `max_length`.
    """
    texts = [clean(text) for text in texts] if options.clean else list(texts)
    encoded = tokenizer(texts, truncation=True, max_length=max_length, return_attention_mask=False)
    cut = np.array([bool(encoding.overflowing) for encoding in encoded.encodings])
    encoded = encoded["input_ids"]
    lengths = np.array([len(ids) for ids in encoded])
    order = np.argsort(-lengths, kind="stable")  # longest first: memory peaks early
    buckets = [bucket for bucket in BUCKETS if bucket < max_length] + [max_length]
    if options.padding == "max_length":
        buckets = [max_length]
    left = tokenizer.padding_side == "left"
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        length = next(bucket for bucket in buckets if bucket >= lengths[rows].max())
        ids = np.full((len(rows), length), tokenizer.pad_token_id or 0, np.int32)
        for line, row in zip(ids, rows, strict=True):
            line[slice(length - lengths[row], None) if left else slice(lengths[row])] = encoded[row]
        mask = np.arange(length) < lengths[rows, None]
        mask = mask[:, ::-1] if left else mask
        yield Batch(rows, (pad_to(ids, size), pad_to(mask, size)), cut=int(cut[rows].sum()))


def _own(pooling: str) -> str | None:
    return None if pooling == "pooler" else pooling


def _pooling_of(path: Path) -> str:
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if "pooling_mode" in config:
        chosen = [config["pooling_mode"]]
    else:
        chosen = [key for key, on in config.items() if key.startswith("pooling_mode_") and on]
        names = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max"}
        chosen = [names.get(key.removeprefix("pooling_mode_"), key) for key in chosen]
    if len(chosen) != 1 or chosen[0] not in POOLINGS:
        raise InputError(f"{path} pools by {chosen}; mmjax has {', '.join(POOLINGS)}")
    return chosen[0]


def _read_list(path: Path) -> list[dict[str, Any]] | None:
    if not path.exists():
        return None
    try:
        modules = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    return modules
