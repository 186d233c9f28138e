"""Sparse graphs and their propagation product.

A `Graph` is a fixed sparse matrix A [N, M] and its transpose, both in CSR, so that the derivative
of A x is the same kind of product. Every graph recommender is built on this product. A `Graph` is a
pytree and is passed to compiled programs as an argument; captured by a closure, XLA would fold it
for seconds.
"""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jax.sharding import NamedSharding, PartitionSpec
from numpy.typing import DTypeLike

from mmjax.ops.sparse import Csr, Pieces, in_pieces, multiply
from mmjax.parallel import mesh as meshes
from mmjax.parallel import table_sharding, trial_axis
from mmjax.parallel.lazy_features import LazyFeatures

NORMALISATIONS = ("sym", "left", "none")


class Graph(NamedTuple):
    """A fixed sparse matrix [N, M] and its transpose [M, N]."""

    forward: Csr | Pieces
    transpose: Csr | Pieces

    @property
    def shape(self) -> tuple[int, int]:
        return self.forward.height, self.transpose.height

    def flip(self) -> "Graph":
        """Return the graph of the transposed matrix, without copying."""
        return Graph(self.transpose, self.forward)


def from_scipy(matrix: sp.spmatrix, dtype: DTypeLike = np.float32) -> Graph:
    """Build a graph from any SciPy sparse matrix."""
    return Graph(_csr(matrix.tocsr(), dtype), _csr(matrix.T.tocsr(), dtype))


def _csr(matrix: sp.csr_matrix, dtype: DTypeLike) -> Csr:
    matrix.sort_indices()
    rows: Any = np.repeat(np.arange(matrix.shape[0], dtype=np.int32), np.diff(matrix.indptr))
    return Csr(
        matrix.data.astype(dtype),
        matrix.indices.astype(np.int32),
        matrix.indptr.astype(np.int32),
        rows,
    )


def place(
    tree: Any,
    layout: table_sharding.Layout,
    varied: frozenset[int] = frozenset(),
    put: meshes.Put = meshes.put,
) -> tuple[Any, Any]:
    """Put a tree on the devices.

    Tables are split by rows, graphs are cut into pieces, everything else is replicated.

    Args:
      varied: the numbers of leaves that have another axis before their own. Where there are any,
        graphs are replicated.
      put: or `meshes.plan`, which puts nothing.

    Returns:
      The tree as it is stored (padded), and the shapes that it has within programs; see
      `table_sharding.Layout.unpad`.
    """
    devices = table_sharding.shard_count(layout.mesh)

    def cut(node: Any) -> Any:
        if not isinstance(node, Graph) or devices == 1 or varied:
            return node
        return Graph(*(in_pieces(cast(Csr, side), devices) for side in node))

    def known(node: Any) -> Any:
        return jnp.empty(node.shape, node.dtype) if isinstance(node, LazyFeatures) else node

    tree = jax.tree.map(cut, tree, is_leaf=lambda node: isinstance(node, Graph))
    shapes = jax.eval_shape(lambda: trial_axis.choose(jax.tree.map(known, tree), varied, 0))
    nodes, structure = jax.tree.flatten(tree, is_leaf=lambda node: isinstance(node, Pieces))

    def laid(number: int, node: Any) -> Any:
        axis = int(number in varied)
        if isinstance(node, Pieces):
            spec = PartitionSpec(table_sharding.AXES)
        elif layout.splits(node.shape[axis:]):
            spec = PartitionSpec(*(None,) * axis, table_sharding.AXES)
            node = table_sharding.pad_axis(node, devices, axis)
        else:
            spec = PartitionSpec()
        return put(node, NamedSharding(layout.mesh, spec))

    placed = [laid(n, node) for n, node in enumerate(nodes)]
    return jax.tree.unflatten(structure, placed), shapes


def incidence(user: np.ndarray, item: np.ndarray, shape: tuple[int, int]) -> sp.csr_matrix:
    """Build the binary user-item matrix R [U, I] in float64.

    Repeated pairs count once.
    """
    matrix = sp.csr_matrix((np.ones(len(user)), (user, item)), shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def bipartite(
    user: np.ndarray,
    item: np.ndarray,
    shape: tuple[int, int],
    *,
    norm: str = "sym",
    eps: float = 0.0,
    dtype: DTypeLike = np.float32,
) -> Graph:
    """Build the user-item block [U, I] of the normalised adjacency.

    The bipartite matrix is [[0, R̂], [R̂ᵀ, 0]] for `norm="sym"` (D^-1/2 A D^-1/2 with degrees +
    eps), so one block suffices: users read from items by `graph`, items from users by
    `graph.flip()`. `norm="left"` gives D_u^-1 R and `norm="none"` the bare R. Isolated nodes get
    zero rows.
    """
    if norm not in NORMALISATIONS:
        raise ValueError(f"norm {norm!r} is not one of {', '.join(NORMALISATIONS)}")
    matrix = incidence(user, item, shape)
    users = np.asarray(matrix.sum(1)).ravel() + eps
    items = np.asarray(matrix.sum(0)).ravel() + eps
    with np.errstate(divide="ignore"):
        left = {"sym": users**-0.5, "left": 1 / users, "none": np.ones_like(users)}[norm]
        right = items**-0.5 if norm == "sym" else np.ones_like(items)
    scale = [sp.diags(np.where(np.isfinite(x), x, 0)) for x in (left, right)]
    return from_scipy(scale[0] @ matrix @ scale[1], dtype)


def top_k_rows(matrix: sp.csr_matrix, k: int) -> sp.csr_matrix:
    """Keep the k largest stored entries of each row.

    Ties go to the lower column.
    """
    matrix = matrix.tocsr()
    least = np.full(matrix.shape[0], -np.inf)  # [rows] the k-th largest value
    for row in np.flatnonzero(np.diff(matrix.indptr) > k):
        values = matrix.data[matrix.indptr[row] : matrix.indptr[row + 1]]
        least[row] = np.partition(values, len(values) - k)[len(values) - k]
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    # Only k entries per row, and ties with the last of them, are left to sort.
    candidates = np.flatnonzero(matrix.data >= least[rows])
    rows, columns, data = rows[candidates], matrix.indices[candidates], matrix.data[candidates]
    order = np.lexsort((columns, -data, rows))
    rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
    keep = order[rank < k]
    return sp.csr_matrix((data[keep], (rows[keep], columns[keep])), shape=matrix.shape)


def in_common(
    matrix: sp.csr_matrix, *, top_k: int, itself: bool = True, budget: int = 1 << 22
) -> sp.csr_matrix:
    """Count the columns that pairs of rows share, top-k per row.

    For a binary X [N, M], returns the `top_k` largest entries of each row of C = X X^T [N, N]. Ties
    go to the lower row. Rows that share nothing are not counted, so a row of the result may be
    shorter. C is computed in blocks of rows that hold about `budget` entries. The time grows with
    the sum over the columns of their squared numbers of entries.

    Args:
      matrix: X.
      top_k: entries per row.
      itself: whether a row may hold its own number.
      budget: entries of C in memory at a time.
    """
    matrix, count = matrix.tocsr(), matrix.shape[0]
    transposed = matrix.T.tocsr()
    # Upper bounds on the entries of each row of C: those of the columns that the row names.
    entries = np.minimum(matrix @ np.diff(transposed.indptr), count)
    firsts = np.flatnonzero(np.diff(np.cumsum(entries) // budget, prepend=-1))
    blocks = []
    for start, stop in zip(firsts, [*firsts[1:], count], strict=True):
        block = (matrix[start:stop] @ transposed).tocsr()
        if not itself:
            rows = np.repeat(np.arange(start, stop), np.diff(block.indptr))
            block.data[block.indices == rows] = 0
            block.eliminate_zeros()
        blocks.append(top_k_rows(block, top_k))
    return sp.vstack(blocks).tocsr()


def co_purchase(
    user: np.ndarray,
    item: np.ndarray,
    shape: tuple[int, int],
    *,
    top_k: int,
    budget: int = 1 << 22,
) -> sp.csr_matrix:
    """Build the graph of items most often bought together.

    A [I, I] is float64, directed, with weights 1. Row i holds the `top_k` largest entries of row i
    of C = R^T R on binary R, the diagonal included (arXiv 2408.11767), by `in_common`. An item
    bought with fewer others has a shorter row, and an item that nobody bought has an empty row.
    """
    neighbours = in_common(incidence(user, item, shape).T, top_k=top_k, budget=budget)
    neighbours.data[:] = 1
    return neighbours


def by_degree(matrix: sp.csr_matrix, *, norm: str = "sym") -> sp.csr_matrix:
    """Normalise a square matrix M [I, I] by its row sums D.

    M may be directed. `norm="sym"` gives D^-1/2 M D^-1/2, `"left"` D^-1 M; a node without entries
    has zeros.
    """
    degree = np.asarray(matrix.sum(1)).ravel()
    power = {"sym": -0.5, "left": -1.0}[norm]
    scale = np.power(degree, power, out=np.zeros_like(degree), where=degree > 0)
    scaled = sp.diags(scale) @ matrix
    return (scaled @ sp.diags(scale) if norm == "sym" else scaled).tocsr()


@jax.custom_vjp
def propagate(graph: Graph, x: jax.Array) -> jax.Array:
    """Multiply A x, [N, M] times [M, D] to [N, D].

    The graph gets no gradient.
    """
    return multiply(graph.forward, x)


def _propagate_forward(graph: Graph, x: jax.Array) -> tuple[jax.Array, Graph]:
    return multiply(graph.forward, x), graph


def _propagate_backward(graph: Graph, cotangent: jax.Array) -> tuple[None, jax.Array]:
    return None, multiply(graph.transpose, cotangent)


propagate.defvjp(_propagate_forward, _propagate_backward)
