"""Dense layers of sentence-transformers, applied after the pooling.

They have a config.json and weights in folders of their own.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.core.errors import InputError
from mmjax.encoders.checkpoints import hub
from mmjax.encoders.layers import gelu

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {  # by the names of torch's classes
    "GELU": gelu,
    "Identity": lambda x: x,
    "ReLU": jax.nn.relu,
    "Sigmoid": jax.nn.sigmoid,
    "SiLU": jax.nn.silu,
    "Tanh": jnp.tanh,
}


class Dense(nnx.Module):
    """Linear layer and activation on vectors [B, F]."""

    def __init__(self, wide: int, out: int, *, bias: bool, activation: str, rngs: nnx.Rngs):
        self.activation = ACTIVATIONS[activation]
        self.linear = nnx.Linear(wide, out, use_bias=bias, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.activation(self.linear(x))


class Behind(nnx.Module):
    """Model followed by Dense layers for its pooled vectors."""

    def __init__(self, model: nnx.Module, dense: Sequence[Dense]):
        self.model = model
        self.dense = nnx.List(dense)


def read(folder: Path, dtype: Any) -> Dense:
    """Read the Dense layer of a folder.

    Its config.json and weights lie in `folder`.

    Raises:
      InputError: missing, damaged, or with an activation or an input that mmjax does not have.
    """
    config = hub.read_config(folder)
    try:
        wide, out = int(config["in_features"]), int(config["out_features"])
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{folder}/config.json lacks in_features or out_features") from None
    name = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
    if name not in ACTIVATIONS:
        raise InputError(f"{folder} is a Dense with {name}, none of {', '.join(ACTIVATIONS)}")
    source = config.get("module_input_name") or "sentence_embedding"
    if source != "sentence_embedding":
        raise InputError(f"{folder} is a Dense of {source}; mmjax has those of vectors only")
    bias = bool(config.get("bias", True))
    graph, params = hub.load_module(
        lambda: Dense(wide, out, bias=bias, activation=name, rngs=nnx.Rngs(0)),
        folder,
        hub.linear("linear", "linear"),
        dtype,
    )
    return hub.merge(graph, params)


def put_behind(
    graph: nnx.GraphDef, params: Any, folders: Sequence[Path]
) -> tuple[nnx.GraphDef, Any]:
    """Add the Dense layers of `folders` to a model.

    Returns:
      The graph definition and the parameters of a `Behind`.

    Raises:
      InputError: what `read` raises.
    """
    dtype = jax.tree.leaves(params)[0].dtype
    behind = Behind(hub.merge(graph, params), [read(folder, dtype) for folder in folders])
    graph, state = nnx.split(behind)
    return graph, nnx.to_pure_dict(state)
