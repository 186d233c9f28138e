"""Linear layers that start as torch's do."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.recommenders.layers import initializers


def linear(
    width: int, out: int, *, init: str = "linear", bias: bool = True, rngs: nnx.Rngs
) -> nnx.Linear:
    """Make x W + b: W [width, out] by `init_table`, b as torch draws a Linear's."""
    return nnx.Linear(
        width,
        out,
        use_bias=bias,
        kernel_init=lambda key, shape, dtype: initializers.init_table(init, key, shape),
        bias_init=lambda key, shape, dtype: initializers.init_bias("linear", key, width, out),
        rngs=rngs,
    )


class Attention(nnx.Module):
    """softmax over M states of <q, tanh(W v_m + b)>, row by row."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.hidden = linear(dim, dim, rngs=rngs)
        self.query = linear(dim, 1, bias=False, rngs=rngs)

    def __call__(self, states: Sequence[jax.Array]) -> list[jax.Array]:
        """What each of the states [N, D] counts, [N, 1]."""
        logits = [self.query(jnp.tanh(self.hidden(v))) for v in states]
        shares = jax.nn.softmax(jnp.concatenate(logits, axis=1), axis=1)
        return jnp.split(shares, len(states), axis=1)
