"""EASE^R: a linear autoencoder in closed form; nothing is trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from flax import nnx
from scipy.linalg import lapack

from mmjax.core.errors import InputError
from mmjax.core.names import choice
from mmjax.ops import graph, sparse
from mmjax.recommenders import base, itemknn

BLOCK = 512  # rows that are copied at once
DIAGONALS = ("gram", "counts")
STEP = 128  # items of a history that are set at once


class EASE(nnx.Module):
    """EASE^R: linear item autoencoder in closed form.

    Steck, WWW 2019: s(u, .) = R_u B, B = argmin |R - R B|^2 + l2 |B|^2 with a zero diagonal.

    P = (R^T R + l2)^-1 and B_ij = -P_ij / P_jj for i != j, in float64; B is kept in float32. It is
    dense, [I, I], the only such table of the recommenders: twelve bytes an entry while it is
    solved, four after, so that catalogues of more than `max_items` are refused. An item that nobody
    has scores 0, and so does everything for a user without history.

    Elliot's code takes R of ratings but puts the numbers of interactions on the diagonal of R^T R
    before it adds l2 (`implicit=False`, `diagonal="counts"`), as if ratings were 0 and 1 there and
    nowhere else: no longer this minimum unless they are.
    """

    def __init__(
        self,
        catalog: base.Catalog,
        *,
        l2: float = 250.0,
        implicit: bool = True,
        diagonal: str = "gram",
        max_items: int = 30_000,
        rngs: nnx.Rngs | None = None,
    ):
        if not l2 > 0:
            raise InputError(f"l2={l2} must be positive: without it items cannot be told apart")
        count = catalog.n_items
        if count > max_items:
            gib = 12 * count**2 / 2**30
            raise InputError(
                f"EASE of {count:,} items needs {gib:,.1f} GiB for a dense {count:,} x {count:,} "
                f"matrix and max_items={max_items:,}: raise it if there is as much memory, or "
                "take a sparse recommender such as itemknn"
            )
        profile = itemknn.profile_of(catalog, implicit)
        counts = choice("diagonal", diagonal, DIAGONALS) == "counts"
        dtype = jnp.result_type(float)
        self.profile = base.Frozen(graph.from_scipy(profile, dtype).forward)  # R [U, I]
        self.weights = base.Frozen(solve(profile, l2, dtype, counts))  # B [I, I]

    def tables(self) -> jax.Array:
        return self.weights.get_value()

    def scores(self, tables: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        """Return the scores R_u B, [B, I].

        A CPU adds up the rows of each history, which reads a small part of B; accelerators
        multiply.
        """
        profile, tables = jax.tree.map(jnp.asarray, (self.profile.get_value(), tables))
        empty = jnp.zeros((batch["user"].shape[0], tables.shape[0]), tables.dtype)
        if not profile.columns.shape[0]:
            return empty

        def of_user(user: jax.Array) -> jax.Array:
            def add(place: jax.Array, row: jax.Array) -> jax.Array:
                return row + profile.values[place] * tables[profile.columns[place]]

            start, end = profile.starts[user], profile.starts[user + 1]
            return jax.lax.fori_loop(start, end, add, jnp.zeros_like(tables[0]))

        def of_users(users: jax.Array) -> jax.Array:
            ones = jnp.ones(users.shape, tables.dtype)
            rows = sparse.add_rows(empty, profile, users, ones, step=STEP)
            return jnp.matmul(rows, tables, precision="highest")

        in_turn = functools.partial(jax.lax.map, of_user)
        return jax.lax.platform_dependent(batch["user"], cpu=in_turn, default=of_users)


def solve(profile: sp.csr_matrix, l2: float, dtype: np.dtype, counts: bool = False) -> np.ndarray:
    """Solve for B [I, I] of R [U, I].

    One float64 matrix is inverted in place and copied to `dtype`. `counts` puts the numbers of
    entries of R's columns on the diagonal of R^T R.

    Raises:
      InputError: R^T R + l2 is not positive definite in float64, or with `counts` has no inverse.
    """
    count = profile.shape[1]
    spans = [slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]
    gram = np.empty((count, count))
    columns = profile.T.tocsr()
    for span in spans:
        gram[span] = (columns[span] @ profile).toarray()
    if counts:
        gram[np.diag_indices(count)] = np.diff(columns.indptr)
    gram[np.diag_indices(count)] += l2
    inverse = _inverse(gram, definite=not counts)
    if inverse is None:
        raise InputError(f"l2={l2} is too small for this catalogue: R^T R + l2 has no inverse")
    diagonal = inverse.diagonal().copy()
    weights = np.empty((count, count), dtype)
    for n, span in enumerate(spans):
        block = np.triu(inverse[span, span])
        inverse[span, span] = block + np.triu(block, 1).T
        for later in spans[n + 1 :]:
            inverse[later, span] = inverse[span, later].T
        weights[span] = inverse[span] / -diagonal[None]
    np.fill_diagonal(weights, 0)
    return weights


def _inverse(gram: np.ndarray, definite: bool) -> np.ndarray | None:
    """Invert a symmetric matrix [I, I] in place.

    Only the upper triangle of the result is valid.

    Returns:
      The inverse, or None where there is none, or where `definite` is claimed and does not hold.
    """
    # A symmetric matrix is its transpose, which in LAPACK's order of entries needs no copy.
    if definite:
        lower, failed = lapack.dpotrf(gram.T, lower=True, clean=False, overwrite_a=True)
        if not failed:
            lower, failed = lapack.dpotri(lower, lower=True, overwrite_c=True)
    else:  # twice the work
        lower, pivots, failed = lapack.dgetrf(gram.T, overwrite_a=True)
        if not failed:
            lower, failed = lapack.dgetri(lower, pivots, overwrite_lu=True)
    return None if failed else lower.T
