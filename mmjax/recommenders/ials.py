"""iALS: matrix factorisation by alternating ridge regressions over all pairs.

It is trained when it is built.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from flax import nnx

from mmjax.core.errors import InputError
from mmjax.recommenders import base, itemknn
from mmjax.recommenders.layers import initializers

PIECE = 16  # neighbours whose outer products are summed by one matrix product
ENTRIES = 1 << 22  # of D x D systems in memory at a time


class IALS(nnx.Module):
    """iALS: implicit alternating least squares.

    Hu et al., ICDM 2008, as in Rendle et al., RecSys 2022: s(u, i) = <w_u, h_i>, the minimum of

      sum over observed (s - 1)^2 + a sum over all pairs s^2
        + l2 sum over users (n_u + a I)^nu |w_u|^2 + l2 sum over items (n_i + a U)^nu |h_i|^2

    with a = `unobserved`, nu = `exponent` and n the numbers of interactions. H starts at N(0,
    `stddev`^2 / D); then `iterations` times W is solved exactly for H and H for W. (Hu et al. have
    nu = 0 and weigh an observed pair against 1 instead of a s^2 + (s - 1)^2; a = 1 / their alpha.)
    Users and items without interactions are zero, which is their minimum; the paper's code leaves
    such items at their start. Initialising a trial is all its training: nothing is left to the
    loop.
    """

    def __init__(
        self,
        catalog: base.Catalog,
        *,
        dim: int,
        iterations: int = 16,
        unobserved: float = 0.1,
        l2: float = 0.003,
        exponent: float = 1.0,
        stddev: float = 0.1,
        rngs: nnx.Rngs,
    ):
        if iterations < 1:
            raise InputError(f"iterations={iterations} must be at least 1")
        if not l2 > 0 or not unobserved >= 0:
            raise InputError(
                f"l2={l2} must be positive and unobserved={unobserved} must not be negative: the "
                "ridge regressions have no unique solution otherwise"
            )
        profile = itemknn.profile_of(catalog, implicit=True)
        sides = cut(profile), cut(profile.T.tocsr())
        weights = unobserved, l2, exponent
        solver = _one_by_one if catalog.mesh is not None and catalog.mesh.size > 1 else _solutions

        def sweep(_: int, tables: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            user = solve(sides[0], tables[1], *weights, solver)
            return user, solve(sides[1], user, *weights, solver)

        item = initializers.init_table("normal", rngs.params(), (catalog.n_items, dim))
        item = item * (stddev * dim**-0.5)
        user = jnp.zeros((catalog.n_users, dim), item.dtype)
        user, item = jax.lax.fori_loop(0, iterations, sweep, (user, item))
        self.user, self.item = base.Drawn(user), base.Drawn(item)

    def tables(self) -> tuple[jax.Array, jax.Array]:
        return self.user[...], self.item[...]

    def scores(self, tables: tuple[jax.Array, jax.Array], batch: dict[str, jax.Array]) -> jax.Array:
        users, items = tables
        return users[batch["user"]] @ items.T  # [B, I]


class Blocks(NamedTuple):
    """Histories of N rows, each cut into pieces of PIECE columns.

    There are Q pieces; the last one of a row is filled up.
    """

    columns: np.ndarray  # [Q, PIECE] int32; M, the number of columns, stands for none
    rows: np.ndarray  # [Q] int32, ascending
    starts: np.ndarray  # [N + 1] int32: the first piece of each row
    lengths: np.ndarray  # [N] int32


def cut(matrix: sp.csr_matrix) -> Blocks:
    """Cut the rows of a matrix [N, M] into pieces.

    Its values do not count.
    """
    count, width = matrix.shape
    lengths = np.diff(matrix.indptr)
    pieces = -(-lengths // PIECE)
    starts = np.append(0, np.cumsum(pieces)).astype(np.int32)
    columns = np.full((starts[-1], PIECE), width, np.int32)
    row = np.repeat(np.arange(count), lengths)  # of each entry
    positions = np.arange(matrix.nnz) - matrix.indptr[row] + starts[row] * PIECE
    columns.reshape(-1)[positions] = matrix.indices
    rows = np.repeat(np.arange(count, dtype=np.int32), pieces)
    return Blocks(columns, rows, starts, lengths.astype(np.int32))


def solve(
    pieces: Blocks,
    other: jax.Array,
    unobserved: float,
    l2: float,
    exponent: float,
    solver: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """Solve the ridge regressions of one side, x [N, D].

    Row n is the best x_n for the other side's H [M, D]:

      (sum of h h^T over n's history + a H^T H + l2 (length + a M)^nu) x_n = sum of h over it

    A block of rows is solved at a time, with a block of the pieces of their histories at a time.
    """
    width, dim = other.shape
    count = len(pieces.lengths)
    size = max(1, min(ENTRIES // dim**2, count))
    blocks = -(-count // size)
    missing = blocks * size - count
    starts = jnp.asarray(np.append(pieces.starts, np.full(missing, pieces.starts[-1])))
    lengths = jnp.asarray(np.append(pieces.lengths, np.zeros(missing)), other.dtype)
    columns, rows = jnp.asarray(pieces.columns), jnp.asarray(pieces.rows)
    gram = jnp.matmul(other.T, other, precision="highest")  # [D, D]

    def block(first: jax.Array) -> jax.Array:
        """Solve `size` rows from `first` on."""

        def add(n: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            positions = starts[first] + n * size + jnp.arange(size)
            row = jnp.where(
                positions < starts[first + size], rows.at[positions].get(mode="clip"), -1
            )
            row = jnp.where(row < 0, size, row - first)  # pieces beyond the block are dropped
            column = columns.at[positions].get(mode="clip")  # [size, PIECE]
            h = other.at[column].get(mode="fill", fill_value=0)  # [size, PIECE, D]
            parts = jnp.einsum("spd,spe->sde", h, h, precision="highest"), h.sum(axis=1)
            products, totals = (
                total + jax.ops.segment_sum(part, row, size, indices_are_sorted=True)
                for total, part in zip(sums, parts, strict=True)
            )
            return products, totals

        sums = jnp.zeros((size, dim, dim), other.dtype), jnp.zeros((size, dim), other.dtype)
        if len(pieces.rows):
            pieces_here = starts[first + size] - starts[first]
            sums = jax.lax.fori_loop(0, -(-pieces_here // size), add, sums)
        left, right = sums
        length = jax.lax.dynamic_slice(lengths, (first,), (size,))
        ridge = jnp.where(length > 0, l2 * (length + unobserved * width) ** exponent, 1)
        identity = jnp.eye(dim, dtype=gram.dtype)[None]
        left += unobserved * gram[None] + ridge[:, None, None] * identity
        return solver(left, right)

    solved = jax.lax.map(block, jnp.arange(blocks) * size)
    return solved.reshape(blocks * size, dim)[:count]


def _solutions(left: jax.Array, right: jax.Array) -> jax.Array:
    """Solve left x = right for x [N, D].

    `left` [N, D, D] is symmetric positive definite, `right` is [N, D].
    """
    lower = jax.lax.linalg.cholesky(left, symmetrize_input=False)
    half = jax.lax.linalg.triangular_solve(lower, right[..., None], left_side=True, lower=True)
    return jax.lax.linalg.triangular_solve(
        lower, half, left_side=True, lower=True, transpose_a=True
    )[..., 0]


def _one_by_one(left: jax.Array, right: jax.Array) -> jax.Array:
    """Solve as `_solutions`, also where a CPU stands for several devices.

    A CPU shares a batch out to the very threads that run its devices: if all of them wait for
    theirs at once, none is left to do it, for ever (jaxlib 0.10.2).
    """

    def on_cpu(left: jax.Array, right: jax.Array) -> jax.Array:
        return jax.lax.map(lambda system: _solutions(*system), (left, right))

    return jax.lax.platform_dependent(left, right, cpu=on_cpu, default=_solutions)
