"""ItemKNN: items similar in who interacted with them; nothing is trained."""

import functools
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from flax import nnx

from mmjax import graph
from mmjax.errors import InputError
from mmjax.recommenders import core

SIMILARITIES = ("cosine", "asymmetric", "dot", "jaccard", "tversky")
ENTRIES = 1 << 22  # of similarities at a time, of 80 bytes each: bounds the memory, not the result


class ItemKNN(nnx.Module):
    """s(u, i) = sum of r_uj w(j, i) over j in u's history; w compares two columns of R.

    With x = column j and y = column i of R:
      cosine      xy / (|x| |y| + shrink)
      asymmetric  xy / ((x.x)^alpha (y.y)^(1 - alpha) + shrink)      Aiolli, RecSys 2013
      dot         xy / (1 + shrink)
      tversky     xy / (alpha (|x| - xy) + beta (|y| - xy) + xy + shrink), on binarised R
      jaccard     tversky with alpha = beta = 1

    `neighbours_of="candidate"` keeps for each scored item its top-k (the textbook's and upstream
    Elliot's rule); `"history"` keeps the top-k of each history item (similaripy's rule, used by the
    fork of arXiv 2508.04571, which also counts an item as its own neighbour: `keep_self`).
    """

    def __init__(
        self,
        catalog: core.Catalog,
        *,
        neighbours: int = 50,
        similarity: str = "cosine",
        shrink: float = 0.0,
        alpha: float = 0.5,
        beta: float = 0.5,
        implicit: bool = True,
        neighbours_of: str = "candidate",
        keep_self: bool = False,
        rngs: nnx.Rngs | None = None,
    ):
        profile = profile_of(catalog, implicit)
        weights = similar_items(
            profile.T.tocsr(),
            neighbours=neighbours,
            similarity=similarity,
            constants=(alpha, beta, shrink),
            neighbours_of=neighbours_of,
            keep_self=keep_self,
        )
        self._remember(profile, weights)

    def _remember(self, profile: sp.csr_matrix, weights: sp.csr_matrix) -> None:
        """R [U, I] and w [history, candidate]."""
        self.profile = core.Frozen(graph.from_scipy(profile).forward)
        self.weights = core.Frozen(graph.from_scipy(weights).forward)
        self.widest = int(np.diff(weights.indptr).max(initial=1))

    def tables(self) -> graph.Csr:
        return self.weights.get_value()  # [history, candidate]

    def scores(self, tables: graph.Csr, batch: dict[str, jax.Array]) -> jax.Array:
        """[B, I]: adds up the rows of each user's history, which are a small part of w."""
        profile, tables = jax.tree.map(jnp.asarray, (self.profile.get_value(), tables))
        n_items = tables.starts.shape[0] - 1

        def add(place: jax.Array, row: jax.Array) -> jax.Array:
            item = profile.columns[place]
            near = tables.starts[item] + jnp.arange(self.widest)  # [widest]
            mine = near < tables.starts[item + 1]
            column = jnp.where(mine, jnp.take(tables.columns, near, mode="clip"), n_items)
            weight = jnp.take(tables.values, near, mode="clip")
            return row.at[column].add(profile.values[place] * weight, mode="drop")

        def of_user(user: jax.Array) -> jax.Array:
            start, end = profile.starts[user], profile.starts[user + 1]
            return jax.lax.fori_loop(start, end, add, jnp.zeros(n_items))

        # A CPU is busy with one user; side by side, all wait for the longest history.
        one_by_one = functools.partial(jax.lax.map, of_user)
        side_by_side = jax.vmap(of_user)
        return jax.lax.platform_dependent(batch["user"], cpu=one_by_one, default=side_by_side)


def profile_of(catalog: core.Catalog, implicit: bool) -> sp.csr_matrix:
    """R, [U, I]: the train ratings, or ones."""
    ratings = np.ones_like(catalog.train_rating) if implicit else catalog.train_rating
    pairs = (catalog.train_user, catalog.train_item)
    return sp.csr_matrix((ratings.astype(np.float64), pairs), shape=catalog.shape)


def similar_items(
    items: sp.csr_matrix,
    *,
    neighbours: int,
    similarity: str,
    constants: tuple[float, float, float],
    neighbours_of: str,
    keep_self: bool,
) -> sp.csr_matrix:
    """The weights [history, candidate] of the neighbours of items that are rows of [I, N].

    Args:
      constants: alpha, beta and shrink; the others are those of ItemKNN.

    Raises:
      InputError: no such similarity or rule of neighbours, or fewer than one neighbour.
    """
    if neighbours < 1:
        raise InputError(f"neighbours={neighbours} must be at least 1")
    core.choice("similarity", similarity, SIMILARITIES)
    core.choice("neighbours_of", neighbours_of, ("candidate", "history"))
    by_history = neighbours_of == "history"
    if similarity == "jaccard":
        similarity, constants = "tversky", (1.0, 1.0, constants[2])
    if similarity == "tversky":
        items = (items != 0).astype(np.float64)
    squares = np.asarray(items.multiply(items).sum(1)).ravel()  # [I] x.x; |x| if binary
    others = items.T.tocsr()
    blocks = []
    for start, stop in _blocks(items):
        cross = (items[start:stop] @ others).tocsr()
        row = np.repeat(np.arange(start, stop), np.diff(cross.indptr))
        x, y = (row, cross.indices) if by_history else (cross.indices, row)
        cross.data = _weigh(similarity, cross.data, squares[x], squares[y], *constants)
        if not keep_self:
            cross.data[row == cross.indices] = 0
        cross.eliminate_zeros()
        blocks.append(graph.top_k_rows(cross, neighbours))
    weights = sp.vstack(blocks)
    return (weights if by_history else weights.T).tocsr()


def _blocks(items: sp.csr_matrix) -> list[tuple[int, int]]:
    """Spans of rows whose products with all rows have about ENTRIES entries at most."""
    count = items.shape[0]
    met = (items != 0) @ items.getnnz(axis=0)  # with repetitions, so no row meets more
    number = np.cumsum(np.minimum(met, count)) // ENTRIES
    starts = [0, *(np.flatnonzero(np.diff(number)) + 1), count]
    return [(int(a), int(b)) for a, b in pairwise(starts)]


def _weigh(
    similarity: str,
    xy: np.ndarray,
    xx: np.ndarray,
    yy: np.ndarray,
    alpha: float,
    beta: float,
    shrink: float,
) -> np.ndarray:
    if similarity == "dot":
        return xy / (1 + shrink)
    if similarity == "cosine":
        return xy / (np.sqrt(xx * yy) + shrink)
    if similarity == "asymmetric":
        return xy / (xx**alpha * yy ** (1 - alpha) + shrink)
    return xy / (alpha * (xx - xy) + beta * (yy - xy) + xy + shrink)
