"""Blocks that the towers share: attention, MLP, the transformer block in both orders."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx


def gelu(x: jax.Array) -> jax.Array:
    """x Φ(x) by the error function; exact, as the checkpoints were trained."""
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {  # by the names of config.json
    "gelu": gelu,
    "gelu_new": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
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
    """Multi-head self-attention, softmax(QKᵀ/√d)V per head, with biases."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.query = nnx.Linear(width, width, rngs=rngs)
        self.key = nnx.Linear(width, width, rngs=rngs)
        self.value = nnx.Linear(width, width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """x: [B, L, D]; mask: bool [B, 1 or L, L], true where a query may look at a key."""
        split = (*x.shape[:-1], self.heads, x.shape[-1] // self.heads)
        q, k, v = (part(x).reshape(split) for part in (self.query, self.key, self.value))
        # Scores and softmax are float32 whatever the tower computes in.
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
        scores = scores / math.sqrt(split[-1])
        if mask is not None:
            # Not -inf: a row that is padding altogether must stay finite.
            scores = jnp.where(mask[:, None], scores, jnp.finfo(scores.dtype).min)
        weights = jax.nn.softmax(scores).astype(x.dtype)
        return self.out(jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape))


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

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """x: [B, L, D]; mask as in `Attention`."""
        if self.norm_first:
            x = x + self.attention(self.attention_norm(x), mask)
            return x + self.mlp(self.mlp_norm(x))
        x = self.attention_norm(x + self.attention(x, mask))
        return self.mlp_norm(x + self.mlp(x))
