"""ItemKNN: item neighbours by interactions; nothing is trained."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from flax import nnx

from mmjax.core.errors import InputError
from mmjax.core.names import choice
from mmjax.ops import graph, sparse
from mmjax.recommenders import base

SIMILARITIES = ("cosine", "asymmetric", "dot", "jaccard", "tversky")
ENTRIES = 1 << 22  # of similarities at a time, of 80 bytes each: bounds the memory, not the result
STEP = 128  # entries of a neighbour's row that are added at once; more take several steps


class ItemKNN(nnx.Module):
    """ItemKNN: k nearest items by their interactions.

    s(u, i) = sum of r_uj w(j, i) over j in u's history; w compares two columns of R.

    With x = column j and y = column i of R:
      cosine      xy / (|x| |y| + shrink)
      asymmetric  xy / ((x.x)^alpha (y.y)^(1 - alpha) + shrink)      Aiolli, RecSys 2013
      dot         xy / (1 + shrink)
      tversky     xy / (alpha (|x| - xy) + beta (|y| - xy) + xy + shrink), on binarised R
      jaccard     tversky with alpha = beta = 1

    |x| is the Euclidean norm in `cosine` and the number of ones in `tversky`.

    `neighbours_of="candidate"` keeps for each scored item its top-k (the textbook's and upstream
    Elliot's rule); `"history"` keeps the top-k of each history item (similaripy's rule, used by the
    fork of arXiv 2508.04571, which also counts an item as its own neighbour: `keep_self`).
    """

    def __init__(
        self,
        catalog: base.Catalog,
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

    def _remember(self, left: sp.csr_matrix, right: sp.csr_matrix) -> None:
        """Keep the two factors of all scores, left @ right.

        Here they are R [U, I] and w [history, candidate].
        """
        dtype = jnp.result_type(float)
        self.left = base.Frozen(graph.from_scipy(left, dtype).forward)
        self.right = base.Frozen(graph.from_scipy(right, dtype).forward)
        self.n_items = right.shape[1]
        self.step = int(np.diff(right.indptr).max(initial=1).clip(1, STEP))

    def tables(self) -> sparse.Csr:
        return self.right.get_value()

    def scores(self, tables: sparse.Csr, batch: dict[str, jax.Array]) -> jax.Array:
        """Return the scores [B, I].

        For each user a few rows of `right` are added up.
        """
        left, right = jax.tree.map(jnp.asarray, (self.left.get_value(), tables))
        return sparse.product_rows(left, right, batch["user"], self.n_items, step=self.step)


def profile_of(catalog: base.Catalog, implicit: bool) -> sp.csr_matrix:
    """Return R [U, I]: the train ratings, or ones."""
    ratings = np.ones_like(catalog.train_rating) if implicit else catalog.train_rating
    pairs = (catalog.train_user, catalog.train_item)
    return sp.csr_matrix((ratings.astype(np.float64), pairs), shape=catalog.shape)


def features_of(catalog: base.Catalog) -> np.ndarray:
    """Return all modalities side by side, [I, F], on the host.

    They are float32 at least.
    """
    rows = np.asarray(catalog.concatenated())
    return rows.astype(jnp.promote_types(rows.dtype, jnp.float32))


def similar_items(
    items: sp.csr_matrix | np.ndarray,
    *,
    neighbours: int,
    similarity: str,
    constants: tuple[float, float, float],
    neighbours_of: str,
    keep_self: bool,
) -> sp.csr_matrix:
    """Return the neighbours' weights [history, candidate].

    Items are rows of [I, N]. Sparse rows: only an item with a nonzero similarity is a neighbour.
    Dense rows: all are, so that a similarity of zero comes before a negative one and takes a place.

    Args:
      constants: alpha, beta and shrink; the others are those of ItemKNN.

    Raises:
      InputError: no such similarity or rule of neighbours, or fewer than one neighbour.
    """
    if neighbours < 1:
        raise InputError(f"neighbours={neighbours} must be at least 1")
    choice("similarity", similarity, SIMILARITIES)
    choice("neighbours_of", neighbours_of, ("candidate", "history"))
    by_history = neighbours_of == "history"
    if similarity == "jaccard":
        similarity, constants = "tversky", (1.0, 1.0, constants[2])
    if similarity == "tversky":
        items = (items != 0).astype(items.dtype)
    is_sparse = sp.issparse(items)
    entries: Any = items
    squares = (entries.multiply(entries) if is_sparse else np.square(entries)).sum(1)
    squares = np.asarray(squares).ravel()  # [I] x.x; |x| if binary
    squares[squares == 0] = 1  # such a row is similar to none, whatever it is divided by

    def weigh(row: np.ndarray, column: np.ndarray, xy: np.ndarray) -> np.ndarray:
        x, y = (row, column) if by_history else (column, row)
        weights = _weigh(similarity, xy, squares[x], squares[y], *constants)
        return weights if keep_self else np.where(row == column, -np.inf, weights)

    blocks = []
    for near in _sparse(items, weigh) if is_sparse else _dense(items, weigh, neighbours):
        block = graph.top_k_rows(near, neighbours)
        block.data[block.data == -np.inf] = 0
        block.eliminate_zeros()
        blocks.append(block)
    weights = sp.vstack(blocks)
    return (weights if by_history else weights.T).tocsr()


Weigh = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # of rows, columns and x.y


def _sparse(items: sp.csr_matrix, weigh: Weigh) -> Iterator[sp.csr_matrix]:
    """Yield blocks of rows of the nonzero similarities [I, I]."""
    transposed = items.T.tocsr()
    for start, stop in _blocks(items):
        cross = (items[start:stop] @ transposed).tocsr()
        row = np.repeat(np.arange(start, stop), np.diff(cross.indptr))
        cross.data = weigh(row, cross.indices, cross.data)
        cross.eliminate_zeros()
        yield cross


def _dense(items: np.ndarray, weigh: Weigh, neighbours: int) -> Iterator[sp.csr_matrix]:
    """Yield blocks of rows of the largest similarities [I, I].

    Each row has its `neighbours` largest, and ties of the least.
    """
    count = len(items)
    columns, last = np.arange(count)[None], count - min(neighbours, count)
    for start in range(0, count, max(1, ENTRIES // count)):
        block = items[start : start + max(1, ENTRIES // count)]
        row = start + np.arange(len(block))[:, None]
        similarities = weigh(row, columns, block @ items.T)  # [block, I]
        least = np.partition(similarities, last, axis=1)[:, last, None]
        near = np.nonzero(similarities >= least)
        yield sp.csr_matrix((similarities[near], near), shape=similarities.shape)


def _blocks(items: sp.csr_matrix) -> list[tuple[int, int]]:
    """Return spans of rows for products of bounded size.

    The products of a span's rows with all rows have about ENTRIES entries at most.
    """
    count = items.shape[0]
    entries = (items != 0) @ items.getnnz(axis=0)  # upper bound: repetitions are counted
    span = np.cumsum(np.minimum(entries, count)) // ENTRIES
    starts = [0, *(np.flatnonzero(np.diff(span)) + 1), count]
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
        below = np.sqrt(xx * yy) + shrink
    elif similarity == "asymmetric":
        below = xx**alpha * yy ** (1 - alpha) + shrink
    else:
        below = alpha * (xx - xy) + beta * (yy - xy) + xy + shrink
    return np.divide(xy, below, out=np.zeros_like(xy), where=below != 0)
