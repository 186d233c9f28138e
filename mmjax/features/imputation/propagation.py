"""Imputation by propagation from co-purchased items (arXiv 2408.11767).

The method heat is from its extension, arXiv 2602.17354. A [I, I] holds the `top_k` items most
bought with each (`graph.co_purchase`), the item itself included. All four methods multiply by a
sparse matrix and set the observed rows back:

  neigh_mean       D^-1 A, once; neighbours that are absent count as zeros
  feat_prop        D^-1/2 A0 D^-1/2, A0 = A without its diagonal, D its row sums
  pers_page_rank   the `top_k` largest entries of each column of alpha (I - (1 - alpha) H)^-1
  heat             the same of expm(-time (I - H))

Here H = (A + I) / (top_k + 1), the papers' one degree for all items; columns are scaled to sum to
1. An item that no observed row reaches keeps zeros and stays absent.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from scipy.special import gammaln

from mmjax.core.errors import InputError
from mmjax.core.progress import Progress
from mmjax.features.imputation.missing import Gaps
from mmjax.ops import graph

Filled = tuple[np.ndarray, np.ndarray]  # rows [I, F], and which of them have a value [I]
PRECISION = 1e-6  # of a column's kept weights, relative to the largest
BLOCK_ENTRIES = 1 << 21  # of a dense block of columns [I, B]: 8 MiB, which caches still hold
LANES = 32  # B is a multiple of it: with 20 columns the CPU's product takes three times as long


def neigh_mean(gaps: Gaps, *, top_k: int = 20) -> Filled:
    """Average the features over the item's row of A."""
    return _spread(gaps, graph.by_degree(gaps.co_purchase(top_k), norm="left"), layers=1)


def feat_prop(gaps: Gaps, *, top_k: int = 20, layers: int = 20) -> Filled:
    """Propagate features over the graph, the papers' MultiHop.

    Absent rows start at zero; there are `layers` steps.
    """
    _check(layers)
    neighbours = gaps.co_purchase(top_k)
    off_diagonal = (neighbours - sp.diags(neighbours.diagonal())).tocsr()
    off_diagonal.eliminate_zeros()
    return _spread(gaps, graph.by_degree(off_diagonal), layers)


def pers_page_rank(gaps: Gaps, *, top_k: int = 20, layers: int = 20, alpha: float = 0.1) -> Filled:
    """Propagate features along personalised PageRank.

    Its restart probability is `alpha`.
    """
    _check(layers)
    if not 1e-3 <= alpha <= 1:
        raise InputError(f"alpha is from 0.001 to 1, not {alpha}")
    # alpha (I - (1 - alpha) H)^-1 = sum of alpha (1 - alpha)^n H^n; the rest of it is 1e-12.
    terms = 1 if alpha == 1 else math.ceil(math.log(1e-12) / math.log1p(-alpha))
    weights = alpha * (1 - alpha) ** np.arange(terms)
    return _spread(gaps, _kernel(gaps, weights, top_k, "pers_page_rank"), layers)


def heat(gaps: Gaps, *, top_k: int = 20, layers: int = 20, time: float = 5.0) -> Filled:
    """Propagate features along the heat kernel at `time`."""
    _check(layers)
    if not 0 < time <= 1000:
        raise InputError(f"time is above 0 and at most 1000, not {time}")
    # expm(-t (I - H)) = sum of Poisson(n; t) H^n; past n = t + 12 sqrt(t) + 40 it is below 1e-12.
    n = np.arange(math.ceil(time + 12 * math.sqrt(time) + 40))
    weights = np.exp(n * math.log(time) - time - gammaln(n + 1))
    return _spread(gaps, _kernel(gaps, weights, top_k, "heat"), layers)


def _check(layers: int) -> None:
    if layers < 1:
        raise InputError(f"layers is at least 1, not {layers}")


def _spread(gaps: Gaps, operator: sp.csr_matrix, layers: int) -> Filled:
    matrix = jax.device_put(graph.from_scipy(operator))
    rows = spread(matrix, gaps.features, gaps.present, layers)
    # All weights are positive, so a row has a value if some weight of an observed row reaches it.
    reached = spread(matrix, gaps.present[:, None].astype(np.float32), gaps.present, layers)
    return np.asarray(rows), np.asarray(reached)[:, 0] > 0


@jax.jit
def spread(operator: graph.Graph, x: jax.Array, present: jax.Array, layers: int) -> jax.Array:
    """Multiply x [I, F] by the operator `layers` times.

    The present rows of x are set back after each step.
    """

    def step(_: int, state: jax.Array) -> jax.Array:
        return jnp.where(present[:, None], x, graph.propagate(operator, state))

    return jax.lax.fori_loop(0, layers, step, jnp.asarray(x))


def _kernel(gaps: Gaps, weights: np.ndarray, top_k: int, what: str) -> sp.csr_matrix:
    """Build the series of H with the given weights, [I, I].

    It is sparse, and its columns sum to 1.
    """
    neighbours = gaps.co_purchase(top_k)
    count = neighbours.shape[0]
    top_k = min(top_k, count)
    kernel = diffuse((neighbours + sp.eye(count)) / (top_k + 1), weights, top_k, what=what)
    return (kernel @ sp.diags(1 / np.asarray(kernel.sum(0)).ravel())).tocsr()


def diffuse(
    matrix: sp.spmatrix,
    weights: np.ndarray,
    top_k: int,
    *,
    block: int | None = None,
    what: str = "diffusion",
) -> sp.csr_matrix:
    """Compute the top-k entries per column of sum_n weights[n] H^n.

    Neither the sum nor a power of H is ever in memory as a whole. B columns are iterated as a dense
    block [I, B], cut to their largest entries, and discarded. H averages (entries >= 0, rows sum to
    1 at most), so the largest entry of H^n e_j falls with n. That entry times the sum of the
    remaining weights bounds the missing part: a column ends when this is below 1e-6 of its largest
    entry. Columns that few items point to spread thinly and end early.

    Time: I columns times the entries of H times the steps, 10 to 150 for PageRank at alpha 0.1 and
    10 to 25 for heat at time 5, so it grows with the square of I. Memory: three dense blocks, and
    `top_k` entries a column.

    Args:
      matrix: H [I, I] with a positive diagonal.
      weights: [N], not negative.
      top_k: entries to keep of each column.
      block: columns at a time; unless given, about 8 MiB a dense block but at least 64 columns (32
        where fewer than 32 columns have other entries than their own).

    Returns:
      The kept entries, [I, I] float64.
    """
    matrix = matrix.tocsr()
    count = matrix.shape[0]
    pointing = matrix.getnnz(axis=0)
    # A column that only its own item points to is done; the others are sorted by that count.
    lone = np.flatnonzero(pointing == 1)
    columns = np.argsort(pointing, kind="stable")[len(lone) :]
    if block is None:
        fitting = max(2, BLOCK_ENTRIES // count // LANES)
        block = LANES * min(fitting, 1 + len(columns) // LANES)
    operator = jax.device_put(graph.from_scipy(matrix))
    remaining = np.append(np.cumsum(weights[::-1])[::-1][1:], 0)  # the weights after each
    series = jnp.asarray(weights, jnp.float32), jnp.asarray(remaining, jnp.float32)
    rows, values, column_ids = [lone], [np.ones(len(lone))], [lone]
    with Progress(what, len(columns), unit="column") as progress:
        for start in range(0, len(columns), block):
            block_columns = columns[start : start + block]
            # Some columns repeat, so that every block has one shape.
            padded = np.resize(block_columns, block)
            value, row = _largest(operator, *series, padded, top_k)
            rows.append(np.asarray(row)[: len(block_columns)].ravel())
            values.append(np.asarray(value, np.float64)[: len(block_columns)].ravel())
            column_ids.append(np.repeat(block_columns, top_k))
            progress.add(len(block_columns))
    entries = np.concatenate(values), (np.concatenate(rows), np.concatenate(column_ids))
    kernel = sp.csr_matrix(entries, shape=matrix.shape)
    kernel.eliminate_zeros()  # a column may have fewer than top_k entries
    return kernel


@jax.jit(static_argnames="top_k")
def _largest(
    operator: graph.Graph,
    weights: jax.Array,
    left: jax.Array,
    columns: jax.Array,
    top_k: int,
) -> tuple[jax.Array, jax.Array]:
    """Find the largest entries of some columns of the series.

    Returns:
      Their values and rows, [B, top_k] each.
    """
    shape = (operator.shape[0], columns.shape[0])
    power = jnp.zeros(shape).at[columns, jnp.arange(shape[1])].set(1)  # H^n e_j, [I, B]

    def goes_on(state: tuple[jax.Array, ...]) -> jax.Array:
        return state[-1].any()

    def step(state: tuple[Any, ...]) -> tuple[Any, ...]:
        n, power, total, active = state
        # A finished column adds nothing more, so it does not depend on the others of its block.
        power = graph.propagate(operator, jnp.where(active[None], power, 0))
        total += weights[n + 1] * power
        return n + 1, power, total, _unfinished(left[n + 1], power, total)

    total = weights[0] * power
    start: tuple[Any, ...] = 0, power, total, _unfinished(left[0], power, total)
    _, _, total, _ = jax.lax.while_loop(goes_on, step, start)
    # Entries that only rounding tells apart count as equal: the lower item wins, on any machine.
    steps = jnp.round(total / total.max(0, keepdims=True) * 2**20)
    _, rows = jax.lax.top_k(steps.T, top_k)
    return jnp.take_along_axis(total.T, rows, axis=1), rows


def _unfinished(left: jax.Array, power: jax.Array, total: jax.Array) -> jax.Array:
    """Mark the columns [B] that may still miss more than the precision."""
    return left * power.max(0) > PRECISION * total.max(0)
