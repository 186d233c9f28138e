"""Layers shared by the towers: attention, MLP, transformer block, patch embedding."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.core.errors import InputError
from mmjax.encoders.vlm.rotary import Turn, rotate
from mmjax.parallel.mesh import flash_attention


def gelu(x: jax.Array) -> jax.Array:
    """Compute the exact GELU by the error function.

    x Φ(x), as the checkpoints were trained.
    """
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {  # keyed by the names in config.json
    "gelu": gelu,
    "gelu_new": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
}


def layer_norm(width: int, epsilon: float, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Build a LayerNorm with torch's two-pass variance.

    The variance is E[(x - mean)²]; E[x²] - mean² loses digits.
    """
    return nnx.LayerNorm(width, epsilon=epsilon, use_fast_variance=False, rngs=rngs)


class Embedding(nnx.Module):
    """Embedding table whose output has the table's current dtype.

    nnx.Embed does not follow a table whose dtype has changed.
    """

    def __init__(self, count: int, width: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.02)
        self.table = nnx.Param(init(rngs.params(), (count, width), jnp.float32))

    def __call__(self, ids: jax.Array | np.ndarray) -> jax.Array:
        return jnp.take(self.table[...], ids, axis=0)


class Attention(nnx.Module):
    """Multi-head attention with biases in its projections.

    softmax(QKᵀ/√d)V per head. Keys and values come from x, or from a context; the argument
    `context` gives the context's width C if it is not D.
    """

    def __init__(self, width: int, heads: int, *, context: int | None = None, rngs: nnx.Rngs):
        self.heads = heads
        self.query = nnx.Linear(width, width, rngs=rngs)
        self.key = nnx.Linear(context or width, width, rngs=rngs)
        self.value = nnx.Linear(context or width, width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        bias: jax.Array | None = None,
        context: jax.Array | None = None,
        by: Turn | None = None,
    ) -> jax.Array:
        """Attend from x to itself or to a context.

        Args:
          x: [B, L, D].
          mask: as in `attend`.
          bias: as in `attend`.
          context: [B, K, C].
          by: rotary positions.
        """
        q, k, v = self.project(x, context, by)
        return self.out(attend(q, k, v, mask, bias).reshape(x.shape))

    def project(
        self, x: jax.Array, context: jax.Array | None = None, by: Turn | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Project to queries, keys and values per head.

        Returns:
          Queries [B, L, H, d], keys and values [B, K, H, d]. Queries and keys are rotated if `by`
          is given.
        """
        attended = x if context is None else context
        q, k, v = (
            part(source).reshape(*source.shape[:2], self.heads, x.shape[-1] // self.heads)
            for part, source in ((self.query, x), (self.key, attended), (self.value, attended))
        )
        if by is not None:
            q, k = rotate(q, by), rotate(k, by)
        return q, k, v


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
) -> jax.Array:
    """Compute softmax(QKᵀ/√d + bias)V per head.

    Args:
      q: [B, Q, H, d].
      k: [B, K, H, d].
      v: [B, K, H, d].
      mask: bool [B, 1 or Q, K], true where a query attends to a key.
      bias: [1 or B, H, Q, K].

    Returns:
      [B, Q, H, d].
    """
    if flash_attention(q.dtype) is not None:
        mask = None if mask is None else mask[:, None]
        return jax.nn.dot_product_attention(q, k, v, bias, mask, implementation="cudnn")
    # Scores and softmax are float32 in every dtype of the tower.
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    scores = scores / math.sqrt(q.shape[-1])
    if bias is not None:
        scores = scores + bias.astype(scores.dtype)
    if mask is not None:
        # Not -inf: a row of padding only must stay finite.
        scores = jnp.where(mask[:, None], scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores).astype(v.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


class Mlp(nnx.Module):
    """Two-layer perceptron: Linear, activation, Linear."""

    def __init__(self, width: int, hidden: int, activation: str, *, rngs: nnx.Rngs):
        self.activation = ACTIVATIONS[activation]
        self.up = nnx.Linear(width, hidden, rngs=rngs)
        self.down = nnx.Linear(hidden, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(self.activation(self.up(x)))


class Block(nnx.Module):
    """Transformer block of attention and MLP, with residuals and LayerNorms.

    `norm_first=False` normalises after the residual (BERT), `norm_first=True` before the sublayer
    (ViT).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        activation: str = "gelu",
        epsilon: float = 1e-12,
        norm_first: bool,
        rngs: nnx.Rngs,
    ):
        self.norm_first = norm_first
        self.attention = Attention(width, heads, rngs=rngs)
        self.attention_norm = layer_norm(width, epsilon, rngs=rngs)
        self.mlp = Mlp(width, hidden, activation, rngs=rngs)
        self.mlp_norm = layer_norm(width, epsilon, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        bias: jax.Array | None = None,
        by: Turn | None = None,
    ) -> jax.Array:
        """Apply the block to x [B, L, D].

        The mask, the bias and `by` are as in `Attention`.
        """
        if self.norm_first:
            x = x + self.attention(self.attention_norm(x), mask, bias, by=by)
            return x + self.mlp(self.mlp_norm(x))
        x = self.attention_norm(x + self.attention(x, mask, bias, by=by))
        return self.mlp_norm(x + self.mlp(x))


class BatchNorm(nnx.Module):
    """Batch normalisation by running statistics, for inference only."""

    def __init__(self, width: int, epsilon: float = 1e-5, *, rngs: nnx.Rngs):
        del rngs  # unused: no random initialisation, but every layer takes rngs
        self.epsilon = epsilon
        self.scale, self.var = nnx.Param(jnp.ones(width)), nnx.Param(jnp.ones(width))
        self.bias, self.mean = nnx.Param(jnp.zeros(width)), nnx.Param(jnp.zeros(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise x [..., D] in float32, and return x's dtype."""
        scale, bias, mean, var = (
            part[...].astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
            for part in (self.scale, self.bias, self.mean, self.var)
        )
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        return ((x.astype(jnp.float32) - mean) * factor + bias).astype(x.dtype)


class Patches(nnx.Module):
    """Patch embedding: a convolution whose stride is its window.

    It is computed as one matrix product, much faster than a convolution on a CPU.
    """

    def __init__(self, size: int, width: int, *, bias: bool = True, rngs: nnx.Rngs):
        self.size = size
        self.project = nnx.Linear(size * size * 3, width, use_bias=bias, rngs=rngs)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Embed the patches of images.

        Args:
          pixels: [B, H, W, 3].

        Returns:
          [B, H / size, W / size, D]; remaining pixels at the bottom and right are dropped.

        Raises:
          InputError: the images are smaller than a patch.
        """
        size, (height, width) = self.size, pixels.shape[1:3]
        rows, columns = height // size, width // size
        if not rows or not columns:
            raise InputError(f"images of {height} x {width} hold no patch of {size} x {size}")
        pixels = pixels[:, : rows * size, : columns * size]
        squares = pixels.reshape(-1, rows, size, columns, size, 3).swapaxes(2, 3)
        return self.project(squares.reshape(-1, rows, columns, size * size * 3))


def stack(build: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> nnx.Module:
    """Build `count` equal modules as one with stacked parameters.

    Each parameter is [count, ...]. `build` runs once, so building a deep model takes as long as a
    shallow one.
    """
    graphs = []

    def one(key: jax.Array) -> nnx.State:
        graph, state = nnx.split(build(nnx.Rngs(key)))
        graphs.append(graph)
        return state

    states = jax.vmap(one)(jax.random.split(rngs.params(), count))
    return nnx.merge(graphs[0], states)


def unstack(blocks: nnx.Module, count: int) -> list[nnx.Module]:
    """Split stacked modules into a list of `count` modules.

    On a CPU a scan copies each layer out of the stack at every step. A loop that reads the weights
    once a token is faster when the layers are unstacked before it starts.
    """
    graph, state = nnx.split(blocks)
    return [nnx.merge(graph, jax.tree.map(lambda a: a[n], state)) for n in range(count)]  # noqa: B023


def over(
    blocks: nnx.Module | list[nnx.Module],
    layer: Callable[[Any, Any, Any], tuple[Any, Any]],
    carry: Any,
    given: Any,
) -> tuple[Any, Any]:
    """Scan a layer function over stacked blocks.

    Each step is `carry, y = layer(block, carry, x)`, as in `jax.lax.scan`. A list of blocks runs in
    a Python loop instead; the results are the same.
    """
    if isinstance(blocks, list):
        outputs = []
        for number, block in enumerate(blocks):
            carry, y = layer(block, carry, jax.tree.map(lambda a: a[number], given))  # noqa: B023
            outputs.append(y)
        return carry, jax.tree.map(lambda *parts: jnp.stack(parts), *outputs)
    graph, state = nnx.split(blocks)

    def body(carry: Any, inputs: Any) -> tuple[Any, Any]:
        block_state, x = inputs
        return layer(nnx.merge(graph, block_state), carry, x)

    return jax.lax.scan(body, carry, (state, given))
