"""ItemKNN: items similar in who interacted with them; nothing is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from flax import nnx

from mmjax import graph
from mmjax.recommenders import core

SIMILARITIES = ("cosine", "asymmetric", "dot", "jaccard", "tversky")
BLOCK = 2048  # similarity rows at a time: bounds the memory, not the result


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
        core.choice("similarity", similarity, SIMILARITIES)
        core.choice("neighbours_of", neighbours_of, ("candidate", "history"))
        ratings = np.ones_like(catalog.train_rating) if implicit else catalog.train_rating
        pairs = (catalog.train_user, catalog.train_item)
        profile = sp.csr_matrix((ratings.astype(np.float64), pairs), shape=catalog.shape)
        by_history = neighbours_of == "history"
        alpha, beta = (1.0, 1.0) if similarity == "jaccard" else (alpha, beta)
        weights = _neighbours(
            profile.T.tocsr(),
            neighbours,
            "tversky" if similarity == "jaccard" else similarity,
            (alpha, beta, shrink),
            rows_are_history=by_history,
            keep_self=keep_self,
        )
        self.weights = core.Frozen(graph.from_scipy(weights.T if by_history else weights))
        self.profile = core.Frozen(graph.from_scipy(profile).forward)
        self.longest = int(np.diff(profile.indptr).max(initial=1))

    def tables(self) -> graph.Graph:
        return self.weights.get_value()  # [candidate, history]

    def scores(self, tables: graph.Graph, batch: dict[str, jax.Array]) -> jax.Array:
        matrix, user = self.profile.get_value(), batch["user"]
        n_items, size = tables.shape[1], user.shape[0]
        start, end = jnp.take(matrix.starts, user), jnp.take(matrix.starts, user + 1)
        place = start[:, None] + jnp.arange(self.longest)[None]  # [B, longest]
        mine = place < end[:, None]
        item = jnp.where(mine, jnp.take(matrix.columns, place, mode="clip"), n_items)
        value = jnp.take(matrix.values, place, mode="clip")
        column = jnp.broadcast_to(jnp.arange(size)[:, None], item.shape)
        history = jnp.zeros((n_items, size)).at[item, column].set(value, mode="drop")
        return graph.propagate(tables, history).T  # [B, I]


def _neighbours(
    columns: sp.csr_matrix,
    k: int,
    similarity: str,
    constants: tuple[float, float, float],
    *,
    rows_are_history: bool,
    keep_self: bool,
) -> sp.csr_matrix:
    """The k most similar items of each item, [I, I], by blocks of rows of `columns` [I, U]."""
    if similarity == "tversky":
        columns = columns.sign()
    squares = np.asarray(columns.multiply(columns).sum(1)).ravel()  # [I] x.x; |x| if binary
    others = columns.T.tocsr()
    blocks = []
    for start in range(0, columns.shape[0], BLOCK):
        cross = (columns[start : start + BLOCK] @ others).tocoo()
        row, column = cross.row + start, cross.col
        x, y = (row, column) if rows_are_history else (column, row)
        value = _weigh(similarity, cross.data, squares[x], squares[y], *constants)
        keep = (value != 0) & (keep_self | (row != column))
        shape = (cross.shape[0], columns.shape[0])
        block = sp.csr_matrix((value[keep], (cross.row[keep], column[keep])), shape=shape)
        blocks.append(graph.top_k_rows(block, k))
    return sp.vstack(blocks).tocsr()


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
