"""Embed items with a vision-language model, a prompt and a pooling.

The Tower gives one multimodal vector [D] an item for each layer. The poolings:

  eos             the state of the token that ends the answer (arXiv 2508.04571)
  mean_generated  the mean over the answer's states
  last_prompt     the state of the prompt's last token; no answer is generated
  mean_prompt     the mean over the prompt's states, the image's tokens included

A layer is the number of a hidden state: 0 is the embeddings, -1 the last, normed states.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.core.errors import InputError
from mmjax.encoders import core
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.core import Batch, Tower
from mmjax.encoders.inputs.pixels import ImageOptions
from mmjax.encoders.vlm import batching, decoder, generation, lvlm, prompts
from mmjax.encoders.vlm.lvlm import Prompts
from mmjax.encoders.vlm.prompts import Family
from mmjax.parallel import mesh

POOLINGS = ("eos", "last_prompt", "mean_prompt", "mean_generated")
DESCRIBE = "{image}Describe the image."  # the default prompt


def tower(
    graph: nnx.GraphDef,
    params: Any,
    *,
    config: decoder.Config,
    family: Family,
    folder: Path,
    ends: tuple[int, ...],
    prompt: str,
    pooling: str,
    layers: Sequence[str | int],
    image: ImageOptions,
    answers: generation.GenerationOptions,
    about: dict[str, Any],
) -> Tower:
    """Build the tower of a model whose module is an `lvlm.Model`.

    Args:
      graph: from `hub.load_module`.
      params: from `hub.load_module`.
      config: of the decoder.
      family: image input of the model.
      folder: of the checkpoint, with the tokenizer.
      ends: ids that end an answer.
      prompt: a file, see `prompts`; if empty, the default prompt.
      pooling: one of `POOLINGS`.
      layers: numbers of hidden states; by default the last.
      image: options of the image processor.
      answers: options of generation.
      about: entries for the manifest.

    Raises:
      InputError: as in `prompts.read` and `prompts.template`; a layer or pooling does not exist, a
        layer is given twice, max_new_tokens is below 1, or the temperature is negative.
    """
    if pooling not in POOLINGS:
        raise InputError(f"pooling {pooling!r} is none of {', '.join(POOLINGS)}")
    if answers.max_new_tokens < 1 or answers.temperature < 0:
        raise InputError(
            f"max_new_tokens {answers.max_new_tokens} must be at least 1, temperature "
            f"{answers.temperature} at least 0"
        )
    chosen = [_number(layer, config.num_hidden_layers) for layer in layers or (-1,)]
    if len(set(chosen)) < len(chosen):
        raise InputError(f"a layer is asked for twice in {', '.join(map(str, layers))}")
    tokenizer = hub.tokenizer(folder)
    prompt_text = prompts.read(prompt) if prompt else DESCRIBE
    template = prompts.template(tokenizer, prompt_text, family, folder)
    generates = pooling in ("eos", "mean_generated")
    room = answers.max_new_tokens + 1 if generates else 0

    def batches(values: Sequence[Any], size: int) -> Iterator[Batch]:
        return prompts.batches(template, values, size, image, room)

    common = {
        "modality": template.modality,
        "layers": {f"hidden_states.{n}:{pooling}": config.hidden_size for n in chosen},
        "params": params,
        "batches": batches,
    }
    about = {**about, "prompt": prompt_text, "prompt_hash": template.digest}
    if not generates:
        shared, encode = _readers(graph, template.prefix, chosen, pooling)
        return Tower(**common, encode=encode, about=about, stream=partial(_stream, shared))
    steps = generation.programs(
        graph, template.prefix, ends, tuple(chosen), answers, apart=mesh.on_cpu()
    )
    about |= {"max_new_tokens": answers.max_new_tokens, "temperature": answers.temperature}
    about |= {"seed": answers.seed} if answers.temperature else {}

    def speak(ids: np.ndarray) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    return Tower(
        **common,
        encode=steps.read,
        about=about,
        stream=partial(batching.stream, steps, speak, pooling),
        speaks=True,
    )


def _readers(
    graph: nnx.GraphDef, prefix: tuple[int, ...], layers: Sequence[int], pooling: str
) -> tuple[Any, core.Encode]:
    """Build the programs that prefill the prefix and the prompts.

    Returns:
      A program that reads the prefix; a program that reads prompts [B] after it and returns a
      vector [B, D] of each layer.
    """
    exact = partial(jax.default_matmul_precision, "highest")

    def total(real: jax.Array, states: jax.Array) -> jax.Array:
        return jnp.where(real[:, :, None], states.astype(jnp.float32), 0).sum(axis=1)

    @jax.jit
    def shared(params: Any) -> tuple[decoder.Cache, jax.Array] | None:
        if not prefix:
            return None
        text = hub.merge(graph, params).decoder
        ids = jnp.array(prefix, jnp.int32)[None]
        real = jnp.ones(ids.shape, bool)
        with exact():
            _, cache, sums = text.read_words(ids, real, partial(total, real))
        return cache, sums

    @jax.jit
    def encode(given: Any, asked: Prompts) -> tuple[jax.Array, ...]:
        params, before = given
        cache, sums = before or (None, 0.0)
        model = hub.merge(graph, params)
        with exact():
            if pooling == "last_prompt":
                end = lvlm.last(asked.real)
                _, _, kept = lvlm.read(model, asked, lambda x: lvlm.take(x, end), cache)
            else:
                _, _, kept = lvlm.read(model, asked, partial(total, asked.real), cache)
                count = asked.real.sum(axis=1) + len(prefix)
                kept = (kept + sums) / count[None, :, None]
        return tuple(kept[n].astype(model.decoder.norm.scale.dtype) for n in layers)

    return shared, encode


def _stream(
    shared: Any, batches: Any, encode: Any, params: Any, rows: Any = None, *rest: Any
) -> core.Rows:
    """Stream as `core.stream`, with the prefix read first."""
    params = core.place(params, rows)
    return core.stream(batches, encode, (params, shared(params)), rows, *rest)


def _number(layer: str | int, count: int) -> int:
    try:
        number = int(str(layer))
    except ValueError:
        raise InputError(
            f"layer {layer!r} is no number; the hidden states are 0 to {count}"
        ) from None
    if not -count - 1 <= number <= count:
        raise InputError(f"layer {number}: the hidden states are 0 (the embeddings) to {count}")
    return number % (count + 1)
