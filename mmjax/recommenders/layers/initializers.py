"""Initial values of tables and weights, under their torch names.

Weights are [in, out].
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.core.names import choice

BIASES = ("linear", "zeros")


def init_table(kind: str, key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Draw a table or weight [in, out] of some kind.

    Kinds: `xavier_uniform`, `xavier_normal`, `normal` (sd 1), `normal0.1` (sd 0.1) and `linear`,
    torch's default for a Linear's weight: uniform within 1/sqrt(in).
    """
    rows, columns = shape
    if kind == "xavier_uniform":
        bound = (6 / (rows + columns)) ** 0.5
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)
    if kind == "linear":
        return jax.random.uniform(key, shape, minval=-(rows**-0.5), maxval=rows**-0.5)
    scale = {"xavier_normal": (2 / (rows + columns)) ** 0.5, "normal": 1.0, "normal0.1": 0.1}
    return scale[choice("init", kind, ("xavier_uniform", "linear", *scale))] * jax.random.normal(
        key, shape
    )


def init_tables(
    kind: str, rngs: nnx.Rngs, shape: tuple[int, int], dim: int, joint: bool
) -> list[jax.Array]:
    """Draw the tables of users [U, D] and items [I, D].

    With `joint` they are two parts of one table. Xavier's deviation depends on the number of rows:
    one table has smaller entries than two.
    """
    if joint:
        table = init_table(kind, rngs.params(), (sum(shape), dim))
        return jnp.split(table, [shape[0]])
    return [init_table(kind, rngs.params(), (rows, dim)) for rows in shape]


def init_bias(kind: str, key: jax.Array, inputs: int, size: int) -> jax.Array:
    """Draw the bias [size] of a linear layer with `inputs` inputs.

    `linear` is torch's default for a Linear's bias, uniform within 1/sqrt(inputs): a torch layer
    has it unless its code sets another, whatever the weight is drawn from. `zeros` is the other
    kind.
    """
    bound = inputs**-0.5 if choice("bias", kind, BIASES) == "linear" else 0.0
    return jax.random.uniform(key, (size,), minval=-bound, maxval=bound)
