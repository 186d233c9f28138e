"""Contrastive cross-entropies over in-batch or all rows, such as InfoNCE.

A loss over B x N logits is three products and an exponential. Automatic differentiation writes and
reads those logits some ten times. Here each block of rows goes through value and gradient while it
is in cache, so that little more than the three products is left.
"""

import functools

import jax
import jax.numpy as jnp

from mmjax.ops.normalize import unit

# Logits in memory at a time: on a CPU as many as its cache holds, on an accelerator 64 MiB.
CPU_LOGITS, ACCELERATOR_LOGITS = 1 << 19, 1 << 24


def info_nce(a: jax.Array, b: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """Compute the mean InfoNCE loss over a batch.

    The mean over n of -log softmax over m of cos(a_n, b_m) / temperature, taken at m = n; a and b
    are [B, D].
    """
    rows = jnp.arange(a.shape[0])
    weights = jnp.full(a.shape[0], 1 / a.shape[0], a.dtype)
    return cross_entropy(unit(a) / temperature, unit(b), rows, weights)


def against_all(
    p: jax.Array,
    q: jax.Array,
    rows: jax.Array,
    temperature: jax.Array | float,
    weights: jax.Array,
) -> jax.Array:
    """Compute a weighted InfoNCE loss against all N rows.

    sum_k w_k times -log softmax over n of cos(p_k, q_n) / temperature, taken at n = k.

    Args:
      p, q: [N, D].
      rows: int [B], the values of k.
      weights: w [B].
    """
    return cross_entropy(unit(p[rows]) / temperature, unit(q), rows, weights)


@jax.custom_vjp
def cross_entropy(a: jax.Array, b: jax.Array, own: jax.Array, weights: jax.Array) -> jax.Array:
    """Compute a weighted cross-entropy of inner products.

    sum_n w_n [log sum_k exp <a_n, b_k> - <a_n, b_own(n)>].

    Args:
      a: [B, D].
      b: [N, D].
      own: int [B], the target row in b of each row of a.
      weights: w [B]; they get no gradient.
    """
    return _forward(a, b, own, weights)[0]


def _forward(a: jax.Array, b: jax.Array, own: jax.Array, weights: jax.Array) -> tuple:
    blocks = [functools.partial(_in_blocks, logits=n) for n in (CPU_LOGITS, ACCELERATOR_LOGITS)]
    log_sums, a_gradient, b_gradient = jax.lax.platform_dependent(
        a, b, weights, cpu=blocks[0], default=blocks[1]
    )
    own_logits = (a * b[own]).sum(axis=1)
    a_gradient -= weights[:, None] * b[own]
    b_gradient = b_gradient.at[own].add(-weights[:, None] * a)
    return (weights * (log_sums - own_logits)).sum(), (a_gradient, b_gradient)


def _in_blocks(a: jax.Array, b: jax.Array, weights: jax.Array, logits: int) -> tuple:
    """Compute log-sum-exps and the gradients of their weighted sum.

    Returns:
      log sum_k exp <a_n, b_k> [B], and the gradients of its weighted sum by a [B, D] and b [N, D].
    """
    count, width = a.shape
    size = min(count, max(8, logits // b.shape[0]))
    fill = -count % size
    # Padding rows have a weight of zero.
    blocks = jnp.pad(a, ((0, fill), (0, 0))).reshape(-1, size, width)
    shares = jnp.pad(weights, (0, fill)).reshape(-1, size, 1)
    columns = b.T

    def one(
        of_columns: jax.Array, block: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        rows, share = block
        scores = rows @ columns  # [size, N]
        largest = scores.max(axis=1, keepdims=True)
        scores = jnp.exp(scores - largest)
        sums = scores.sum(axis=1, keepdims=True)
        of_columns += (rows * (share / sums)).T @ scores
        return of_columns, (jnp.log(sums) + largest, (scores @ b) * (share / sums))

    # [D, N]: summed in this shape, the product needs no transposed copy.
    of_columns, (log_sums, of_rows) = jax.lax.scan(one, jnp.zeros_like(columns), (blocks, shares))
    return log_sums.reshape(-1)[:count], of_rows.reshape(-1, width)[:count], of_columns.T


def _backward(kept: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple:
    a_gradient, b_gradient = kept
    return cotangent * a_gradient, cotangent * b_gradient, None, None


cross_entropy.defvjp(_forward, _backward)
