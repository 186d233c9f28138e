"""Blocks that the towers share: attention, MLP, the transformer block in both orders."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.core.errors import InputError
from mmjax.encoders.vlm.rotary import Turn, rotate
from mmjax.parallel.mesh import flash_attention


def gelu(x: jax.Array) -> jax.Array:
    """x Φ(x) by the error function; exact, as the checkpoints were trained."""
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {  # by the names of config.json
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
    """LayerNorm whose variance is E[(x - mean)²], as torch's; E[x²] - mean² loses digits."""
    return nnx.LayerNorm(width, epsilon=epsilon, use_fast_variance=False, rngs=rngs)


class Embedding(nnx.Module):
    """A table of vectors; unlike nnx.Embed it answers in whatever dtype the table has become."""

    def __init__(self, count: int, width: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.02)
        self.table = nnx.Param(init(rngs.params(), (count, width), jnp.float32))

    def __call__(self, ids: jax.Array) -> jax.Array:
        return jnp.take(self.table[...], ids, axis=0)


class Attention(nnx.Module):
    """Multi-head attention, softmax(QKᵀ/√d)V per head, with biases.

    Keys and values are of x itself, or of a context, whose width is told if it is another.
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
        """x: [B, L, D]; context: [B, K, C]; mask and bias as in `attend`; by: rotary positions."""
        q, k, v = self.project(x, context, by)
        return self.out(attend(q, k, v, mask, bias).reshape(x.shape))

    def project(
        self, x: jax.Array, context: jax.Array | None = None, by: Turn | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries [B, L, H, d], keys and values [B, K, H, d]; queries and keys turned."""
        seen = x if context is None else context
        q, k, v = (
            part(source).reshape(*source.shape[:2], self.heads, x.shape[-1] // self.heads)
            for part, source in ((self.query, x), (self.key, seen), (self.value, seen))
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
    """softmax(QKᵀ/√d + bias)V per head, [B, Q, H, d].

    q: [B, Q, H, d]; k and v: [B, K, H, d]; mask: bool [B, 1 or Q, K], true where to look; bias:
    [1 or B, H, Q, K].
    """
    if flash_attention(q.dtype) is not None:
        mask = None if mask is None else mask[:, None]
        return jax.nn.dot_product_attention(q, k, v, bias, mask, implementation="cudnn")
    # Scores and softmax are float32 whatever the tower computes in.
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    scores = scores / math.sqrt(q.shape[-1])
    if bias is not None:
        scores = scores + bias.astype(scores.dtype)
    if mask is not None:
        # Not -inf: a row that is padding altogether must stay finite.
        scores = jnp.where(mask[:, None], scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores).astype(v.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


class Mlp(nnx.Module):
    """Linear, activation, Linear."""

    def __init__(self, width: int, hidden: int, activation: str, *, rngs: nnx.Rngs):
        self.activation = ACTIVATIONS[activation]
        self.up = nnx.Linear(width, hidden, rngs=rngs)
        self.down = nnx.Linear(hidden, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(self.activation(self.up(x)))


class Block(nnx.Module):
    """Transformer block: attention and MLP, each with a residual and a LayerNorm.

    `norm_first=False` normalises after the residual (BERT), `True` before the sublayer (ViT).
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
        """x: [B, L, D]; mask, bias and by as in `Attention`."""
        if self.norm_first:
            x = x + self.attention(self.attention_norm(x), mask, bias, by=by)
            return x + self.mlp(self.mlp_norm(x))
        x = self.attention_norm(x + self.attention(x, mask, bias, by=by))
        return self.mlp_norm(x + self.mlp(x))


class BatchNorm(nnx.Module):
    """Batch normalisation by the running mean and variance; for inference only."""

    def __init__(self, width: int, epsilon: float = 1e-5, *, rngs: nnx.Rngs):
        del rngs  # nothing is drawn; as every layer has it
        self.epsilon = epsilon
        self.scale, self.var = nnx.Param(jnp.ones(width)), nnx.Param(jnp.ones(width))
        self.bias, self.mean = nnx.Param(jnp.zeros(width)), nnx.Param(jnp.zeros(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., D], normalised in float32 whatever the tower computes in."""
        scale, bias, mean, var = (
            part[...].astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
            for part in (self.scale, self.bias, self.mean, self.var)
        )
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        return ((x.astype(jnp.float32) - mean) * factor + bias).astype(x.dtype)


class Patches(nnx.Module):
    """Cuts images into squares and embeds each: a convolution whose stride is its window.

    Written as the one matrix product that it is, which is much faster than a convolution on a CPU.
    """

    def __init__(self, size: int, width: int, *, bias: bool = True, rngs: nnx.Rngs):
        self.size = size
        self.project = nnx.Linear(size * size * 3, width, use_bias=bias, rngs=rngs)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """pixels: [B, H, W, 3], to [B, H / size, W / size, D]; a remainder is cut off.

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
    """`count` like modules as one whose every parameter is theirs stacked, [count, ...].

    `build` runs once, so that a deep model is as quickly made as a shallow one.
    """
    graphs = []

    def one(key: jax.Array) -> nnx.State:
        graph, state = nnx.split(build(nnx.Rngs(key)))
        graphs.append(graph)
        return state

    states = jax.vmap(one)(jax.random.split(rngs.params(), count))
    return nnx.merge(graphs[0], states)


def unstack(blocks: nnx.Module, count: int) -> list[nnx.Module]:
    """The modules again.

    A CPU copies a layer out of the stack each time a scan comes to it; a loop that reads the
    weights once a token is faster with the layers taken apart before it begins.
    """
    graph, state = nnx.split(blocks)
    return [nnx.merge(graph, jax.tree.map(lambda a: a[n], state)) for n in range(count)]  # noqa: B023


def over(
    blocks: nnx.Module | list[nnx.Module],
    layer: Callable[[Any, Any, Any], tuple[Any, Any]],
    carry: Any,
    given: Any,
) -> tuple[Any, Any]:
    """`carry, y = layer(block, carry, x)` through stacked blocks, as `jax.lax.scan` does.

    A list of blocks is run through in Python instead; the results are the same.
    """
    if isinstance(blocks, list):
        found = []
        for number, block in enumerate(blocks):
            carry, y = layer(block, carry, jax.tree.map(lambda a: a[number], given))  # noqa: B023
            found.append(y)
        return carry, jax.tree.map(lambda *parts: jnp.stack(parts), *found)
    graph, state = nnx.split(blocks)

    def body(carry: Any, inputs: Any) -> tuple[Any, Any]:
        one, x = inputs
        return layer(nnx.merge(graph, one), carry, x)

    return jax.lax.scan(body, carry, (state, given))
