"""Cross-entropies of inner products with in-batch or all other rows: InfoNCE and its kin.

A loss over B x N logits is three products and an exponential. Differentiated as it stands it writes
and reads those logits some ten times; here each block of rows goes through value and gradient while
it is in cache, so that little more than the three products is left.
"""

import jax
import jax.numpy as jnp

from mmjax.ops.normalize import unit

# Logits in memory at once: of a CPU what its cache holds, of an accelerator 64 MiB.
CPU_LOGITS, ACCELERATOR_LOGITS = 1 << 19, 1 << 24


def info_nce(a: jax.Array, b: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """Mean of -log softmax over the batch of cos(a_n, b_m) / temperature at m = n; rows [B, D]."""
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
    """sum_k w_k times -log softmax over all N of cos(p_k, q_n) / temperature at n = k.

    p and q are [N, D], k goes over rows [B] with weights w [B].
    """
    return cross_entropy(unit(p[rows]) / temperature, unit(q), rows, weights)


@jax.custom_vjp
def cross_entropy(a: jax.Array, b: jax.Array, own: jax.Array, weights: jax.Array) -> jax.Array:
    """sum_n w_n [log sum_k exp <a_n, b_k> - <a_n, b_own(n)>].

    a [B, D], b [N, D], own int [B], weights w [B], which get no gradient.
    """
    return _forward(a, b, own, weights)[0]


def _forward(a: jax.Array, b: jax.Array, own: jax.Array, weights: jax.Array) -> tuple:
    blocks = [lambda *given, n=n: _in_blocks(*given, n) for n in (CPU_LOGITS, ACCELERATOR_LOGITS)]
    log_sums, of_a, of_b = jax.lax.platform_dependent(
        a, b, weights, cpu=blocks[0], default=blocks[1]
    )
    own_logits = (a * b[own]).sum(axis=1)
    of_a -= weights[:, None] * b[own]
    of_b = of_b.at[own].add(-weights[:, None] * a)
    return (weights * (log_sums - own_logits)).sum(), (of_a, of_b)


def _in_blocks(a: jax.Array, b: jax.Array, weights: jax.Array, logits: int) -> tuple:
    """log sum_k exp <a_n, b_k> [B], and the gradients [B, D] and [N, D] of its weighted sum."""
    count, width = a.shape
    size = min(count, max(8, logits // b.shape[0]))
    fill = -count % size
    # Rows that only fill up have a weight of zero.
    blocks = jnp.pad(a, ((0, fill), (0, 0))).reshape(-1, size, width)
    shares = jnp.pad(weights, (0, fill)).reshape(-1, size, 1)
    columns = b.T

    def one(of_columns: jax.Array, block: tuple[jax.Array, jax.Array]) -> tuple:
        rows, share = block
        found = rows @ columns  # [size, N]
        largest = found.max(axis=1, keepdims=True)
        found = jnp.exp(found - largest)
        sums = found.sum(axis=1, keepdims=True)
        of_columns += (rows * (share / sums)).T @ found
        return of_columns, (jnp.log(sums) + largest, (found @ b) * (share / sums))

    # [D, N]: summed in this shape, the product needs no transposed copy.
    of_columns, (log_sums, of_rows) = jax.lax.scan(one, jnp.zeros_like(columns), (blocks, shares))
    return log_sums.reshape(-1)[:count], of_rows.reshape(-1, width)[:count], of_columns.T


def _backward(kept: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple:
    of_a, of_b = kept
    return cotangent * of_a, cotangent * of_b, None, None


cross_entropy.defvjp(_forward, _backward)
