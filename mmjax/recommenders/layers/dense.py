"""Linear layers and attention that start as torch's do."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.recommenders.layers import initializers


def linear(
    width: int, out: int, *, init: str = "linear", bias: bool = True, rngs: nnx.Rngs
) -> nnx.Linear:
    """Build a linear layer x W + b with torch's initialisation.

    W [width, out] is drawn by `init_table`, b as torch draws a Linear's bias.
    """
    return nnx.Linear(
        width,
        out,
        use_bias=bias,
        kernel_init=lambda key, shape, dtype: initializers.init_table(init, key, shape),
        bias_init=lambda key, shape, dtype: initializers.init_bias("linear", key, width, out),
        rngs=rngs,
    )


class Attention(nnx.Module):
    """Attention over M states, row by row.

    The weights are the softmax over m of <q, tanh(W v_m + b)>.
    """

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.hidden = linear(dim, dim, rngs=rngs)
        self.query = linear(dim, 1, bias=False, rngs=rngs)

    def __call__(self, states: Sequence[jax.Array]) -> list[jax.Array]:
        """Return the weights [N, 1] of each of the states [N, D]."""
        logits = [self.query(jnp.tanh(self.hidden(v))) for v in states]
        shares = jax.nn.softmax(jnp.concatenate(logits, axis=1), axis=1)
        return jnp.split(shares, len(states), axis=1)
