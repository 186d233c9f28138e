"""Sparse matrices on devices and their product with a table, the one kernel of every graph.

A matrix lies whole on every device, or in pieces, a device's own rows on each.
"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.experimental import sparse
from jax.sharding import PartitionSpec

from mmjax.parallel import table_sharding


class Csr(NamedTuple):
    """Compressed sparse rows; `rows` repeats each row's number for the segment-sum kernel."""

    values: jax.Array  # [E]
    columns: jax.Array  # [E] int32
    starts: jax.Array  # [N + 1] int32
    rows: jax.Array  # [E] int32, ascending

    @property
    def height(self) -> int:
        return self.starts.shape[0] - 1


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["values", "columns", "starts", "rows"],
    meta_fields=["height"],
)
@dataclass(frozen=True)
class Pieces:
    """A matrix cut by rows into S pieces of n rows, a `Csr` each, for the S devices of a mesh.

    All pieces have the room of the fullest: what is left behind a piece's entries are zeros at
    column 0, which count to its last row. So are rows beyond the last empty.
    """

    values: jax.Array  # [S, E]
    columns: jax.Array  # [S, E] int32
    starts: jax.Array  # [S, n + 1] int32, within the piece
    rows: jax.Array  # [S, E] int32, within the piece, ascending
    height: int  # rows of the whole matrix


def in_pieces(matrix: Csr, count: int) -> Pieces:
    """Cuts a matrix on the host for `count` devices."""
    values, columns, starts, _ = map(np.asarray, matrix)
    rows = len(starts) - 1
    size = -(-rows // count)
    first = starts[np.minimum(np.arange(count + 1) * size, rows)]
    room = max(1, int(np.diff(first).max()))
    shape = (count, room)
    cut = Pieces(
        np.zeros(shape, values.dtype),
        np.zeros(shape, np.int32),
        np.zeros((count, size + 1), np.int32),
        np.full(shape, size - 1, np.int32),
        rows,
    )
    for n, (begin, end) in enumerate(itertools.pairwise(first)):
        cut.values[n, : end - begin] = values[begin:end]
        cut.columns[n, : end - begin] = columns[begin:end]
        own = starts[np.minimum(np.arange(n * size, (n + 1) * size + 1), rows)] - begin
        cut.rows[n, : end - begin] = np.repeat(np.arange(size, dtype=np.int32), np.diff(own))
        cut.starts[n] = own
        cut.starts[n, -1] = room
    return cut


@custom_vmap
def multiply(matrix: Csr | Pieces, x: jax.Array) -> jax.Array:
    """A x, [N, M] times [M, D], without a gradient: XLA's native kernel on CPU, a sorted segment
    sum elsewhere; where the mesh splits tables, each device makes a part of it."""
    alone = functools.partial(jax.lax.platform_dependent, cpu=_native, default=_segments)
    return _product(alone, matrix, x)


@multiply.def_vmap
def _multiply_trials(size: int, batched: list, matrix: Csr | Pieces, x: jax.Array):
    """T products with one matrix. On CPU one after the other, since T tables would leave the cache;
    elsewhere the trials are folded into the width, so that the indices are read once."""
    matrix_batched, x_batched = batched
    if any(jax.tree.leaves(matrix_batched)):
        both = (matrix, x), (matrix_batched, x_batched)
        all_of_them = jax.tree.map(
            lambda a, b: a if b else jnp.broadcast_to(a, (size, *a.shape)), *both
        )
        return jax.lax.map(lambda pair: multiply(*pair), all_of_them), True
    together = functools.partial(jax.lax.platform_dependent, cpu=_one_by_one, default=_folded)
    return _product(together, matrix, x), True


def _product(
    kernel: Callable[[Csr, jax.Array], jax.Array], matrix: Csr | Pieces, x: jax.Array
) -> jax.Array:
    """A x by a kernel for one device; rows are the last axis but one of x and of the product.

    Over several devices each reads all rows of x. Of a matrix in pieces it makes its own rows; of
    another, which was drawn on the devices, it takes an equal part of the entries, and what they
    give is summed over the devices.
    """
    mesh = table_sharding.current_mesh()
    if mesh is None:
        return kernel(matrix, x)
    many, axes, axis = table_sharding.shard_count(mesh), table_sharding.AXES, x.ndim - 2
    split, table = PartitionSpec(axes), PartitionSpec(*(None,) * axis, axes)

    def own_rows(matrix: Pieces, x: jax.Array) -> jax.Array:
        own = Csr(matrix.values[0], matrix.columns[0], matrix.starts[0], matrix.rows[0])
        return kernel(own, jax.lax.all_gather(x, axes, axis=axis, tiled=True))

    def own_entries(values: jax.Array, columns: jax.Array, starts: jax.Array, rows: jax.Array, x):
        first = jax.lax.axis_index(axes) * values.shape[0]
        starts = jnp.clip(starts - first, 0, values.shape[0]).astype(starts.dtype)
        x = jax.lax.all_gather(x, axes, axis=axis, tiled=True)
        part = kernel(Csr(values, columns, starts, rows), x)
        return jax.lax.psum_scatter(part, axes, scatter_dimension=axis, tiled=True)

    x = table_sharding.pad_axis(x, many, axis)
    if isinstance(matrix, Pieces):
        out = table_sharding.on_each_device(own_rows, mesh, (split, table), table)(matrix, x)
        return jax.lax.slice_in_dim(out, 0, matrix.height, axis=axis)
    count, lacking = matrix.height, (0, -matrix.values.shape[0] % many)
    parts = (
        jnp.pad(matrix.values, lacking),
        jnp.pad(matrix.columns, lacking),
        jnp.pad(matrix.starts, (0, -count % many), mode="edge"),
        jnp.pad(matrix.rows, lacking, constant_values=count - 1),
    )
    specs = (split, split, PartitionSpec(), split, table)
    out = table_sharding.on_each_device(own_entries, mesh, specs, table)(*parts, x)
    return jax.lax.slice_in_dim(out, 0, count, axis=axis)


def _native(matrix: Csr, x: jax.Array) -> jax.Array:
    shape = (matrix.starts.shape[0] - 1, x.shape[0])
    return sparse.BCSR((matrix.values, matrix.columns, matrix.starts), shape=shape) @ x


def _segments(matrix: Csr, x: jax.Array) -> jax.Array:
    rows = matrix.starts.shape[0] - 1
    messages = x[matrix.columns] * matrix.values[:, None]
    return jax.ops.segment_sum(messages, matrix.rows, rows, indices_are_sorted=True)


def _one_by_one(matrix: Csr, x: jax.Array) -> jax.Array:
    return jax.lax.map(lambda table: _native(matrix, table), x)  # [T, M, D] -> [T, N, D]


def _folded(matrix: Csr, x: jax.Array) -> jax.Array:
    trials, rows, width = x.shape
    out = _segments(matrix, x.transpose(1, 0, 2).reshape(rows, trials * width))
    return out.reshape(-1, trials, width).transpose(1, 0, 2)


def add_rows(
    total: jax.Array, matrix: Csr, rows: jax.Array, weights: jax.Array, *, step: int
) -> jax.Array:
    """total [B, M] + weights [B] times rows [B] of a sparse matrix [N, M], `step` entries at once.

    Its time is that of the longest of the rows; none of weight 0 counts.
    """
    if not matrix.columns.shape[0]:
        return total
    start = matrix.starts[rows]
    end = jnp.where(weights == 0, start, matrix.starts[rows + 1])
    line = jnp.arange(rows.shape[0])[:, None]

    def add(n: jax.Array, total: jax.Array) -> jax.Array:
        place = start[:, None] + (n * step + jnp.arange(step))[None]  # [B, step]
        column = jnp.take(matrix.columns, place, mode="clip")
        column = jnp.where(place < end[:, None], column, total.shape[1])
        value = weights[:, None] * jnp.take(matrix.values, place, mode="clip")
        return total.at[line, column].add(value, mode="drop")

    return jax.lax.fori_loop(0, -(-(end - start).max() // step), add, total)


def product_rows(left: Csr, right: Csr, rows: jax.Array, width: int, *, step: int) -> jax.Array:
    """Rows [B] of left @ right, both sparse, as [B, width].

    Costs the entries of `right` in the rows that a row of `left` names, `step` at once.
    """

    def some(rows: jax.Array) -> jax.Array:
        total = jnp.zeros((rows.shape[0], width), right.values.dtype)
        if not left.columns.shape[0]:
            return total
        start, end = left.starts[rows], left.starts[rows + 1]

        def add(n: jax.Array, total: jax.Array) -> jax.Array:
            place = start + n
            weight = jnp.where(place < end, jnp.take(left.values, place, mode="clip"), 0)
            inner = jnp.take(left.columns, place, mode="clip")
            return add_rows(total, right, inner, weight, step=step)

        return jax.lax.fori_loop(0, (end - start).max(), add, total)

    return one_by_one(some, rows)


def one_by_one(function: Callable[[jax.Array], jax.Array], rows: jax.Array) -> jax.Array:
    """`function` of rows [B] at once; on a CPU, where all would wait for the longest, in turn."""
    in_turn = functools.partial(jax.lax.map, lambda row: function(row[None])[0])
    return jax.lax.platform_dependent(rows, cpu=in_turn, default=function)
