"""Sparse matrices on devices and their product with a table.

This product is the kernel of every graph recommender. A matrix is either replicated on every
device, or cut into pieces by rows, one piece per device.
"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.experimental import sparse
from jax.sharding import PartitionSpec

from mmjax.parallel import table_sharding


class Csr(NamedTuple):
    """Compressed sparse rows of a matrix [N, M].

    `rows` repeats each row's number for the segment-sum kernel.
    """

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
    """Matrix cut by rows into S pieces for S devices.

    A piece is a `Csr` of n rows, and S is the number of devices of a mesh. All pieces have the size
    of the fullest: the entries behind a piece's own are zeros at column 0 and count to its last
    row. Rows beyond the matrix's last are empty apart from that padding.
    """

    values: jax.Array  # [S, E]
    columns: jax.Array  # [S, E] int32
    starts: jax.Array  # [S, n + 1] int32, within the piece
    rows: jax.Array  # [S, E] int32, within the piece, ascending
    height: int  # rows of the whole matrix


def in_pieces(matrix: Csr, count: int) -> Pieces:
    """Cut a matrix on the host for `count` devices."""
    values, columns, starts, _ = map(np.asarray, matrix)
    rows = len(starts) - 1
    size = -(-rows // count)
    first = starts[np.minimum(np.arange(count + 1) * size, rows)]
    room = max(1, int(np.diff(first).max()))
    shape = (count, room)
    arrays: dict[str, Any] = dict(  # in NumPy, to be put on devices
        values=np.zeros(shape, values.dtype),
        columns=np.zeros(shape, np.int32),
        starts=np.zeros((count, size + 1), np.int32),
        rows=np.full(shape, size - 1, np.int32),
    )
    cut = Pieces(**arrays, height=rows)
    for n, (begin, end) in enumerate(itertools.pairwise(first)):
        cut.values[n, : end - begin] = values[begin:end]
        cut.columns[n, : end - begin] = columns[begin:end]
        local_starts = starts[np.minimum(np.arange(n * size, (n + 1) * size + 1), rows)] - begin
        cut.rows[n, : end - begin] = np.repeat(
            np.arange(size, dtype=np.int32), np.diff(local_starts)
        )
        cut.starts[n] = local_starts
        cut.starts[n, -1] = room
    return cut


@custom_vmap
def multiply(matrix: Csr | Pieces, x: jax.Array) -> jax.Array:
    """Multiply A x, without a gradient.

    Shapes: A [N, M], x [M, D] to [N, D]. A CPU runs XLA's native kernel, other platforms a sorted
    segment sum. Where the mesh splits tables, each device computes a part of the product.
    """
    kernel = functools.partial(jax.lax.platform_dependent, cpu=_native, default=_segments)
    return _product(kernel, matrix, x)


@multiply.def_vmap
def _multiply_trials(size: int, batched: list, matrix: Csr | Pieces, x: jax.Array):
    """Compute T products with one matrix.

    A CPU computes one after the other, since T tables would leave the cache. Other platforms fold
    the trials into the width, so that the indices are read once.
    """
    matrix_batched, x_batched = batched
    if any(jax.tree.leaves(matrix_batched)):
        values_and_flags = (matrix, x), (matrix_batched, x_batched)
        operands = jax.tree.map(
            lambda a, b: a if b else jnp.broadcast_to(a, (size, *a.shape)), *values_and_flags
        )
        return jax.lax.map(lambda pair: multiply(*pair), operands), True
    kernel = functools.partial(jax.lax.platform_dependent, cpu=_one_by_one, default=_folded)
    return _product(kernel, matrix, x), True


def _product(
    kernel: Callable[[Csr, jax.Array], jax.Array], matrix: Csr | Pieces, x: jax.Array
) -> jax.Array:
    """Multiply A x with a single-device kernel on every device.

    Rows are the second-to-last axis of x and of the product. With several devices, an all-gather
    gives each of them all rows of x. Of a matrix in pieces a device computes its own rows. Of any
    other matrix, which was drawn on the devices, a device takes an equal share of the entries, and
    the partial products are summed over the devices.
    """
    mesh = table_sharding.current_mesh()
    if mesh is None:
        return kernel(cast(Csr, matrix), x)
    devices, axes, axis = table_sharding.shard_count(mesh), table_sharding.AXES, x.ndim - 2
    split, table = PartitionSpec(axes), PartitionSpec(*(None,) * axis, axes)

    def own_rows(matrix: Pieces, x: jax.Array) -> jax.Array:
        piece = Csr(matrix.values[0], matrix.columns[0], matrix.starts[0], matrix.rows[0])
        return kernel(piece, jax.lax.all_gather(x, axes, axis=axis, tiled=True))

    def own_entries(values: jax.Array, columns: jax.Array, starts: jax.Array, rows: jax.Array, x):
        first = jax.lax.axis_index(axes) * values.shape[0]
        starts = jnp.clip(starts - first, 0, values.shape[0]).astype(starts.dtype)
        x = jax.lax.all_gather(x, axes, axis=axis, tiled=True)
        part = kernel(Csr(values, columns, starts, rows), x)
        return jax.lax.psum_scatter(part, axes, scatter_dimension=axis, tiled=True)

    x = table_sharding.pad_axis(x, devices, axis)
    if isinstance(matrix, Pieces):
        out = table_sharding.on_each_device(own_rows, mesh, (split, table), table)(matrix, x)
        return jax.lax.slice_in_dim(out, 0, matrix.height, axis=axis)
    count, padding = matrix.height, (0, -matrix.values.shape[0] % devices)
    parts = (
        jnp.pad(matrix.values, padding),
        jnp.pad(matrix.columns, padding),
        jnp.pad(matrix.starts, (0, -count % devices), mode="edge"),
        jnp.pad(matrix.rows, padding, constant_values=count - 1),
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
    """Return total [B, M] + weights [B] times rows of a matrix.

    The time is that of the longest of the rows; rows of weight 0 do not count.

    Args:
      matrix: sparse [N, M].
      rows: int [B], the rows of the matrix to add.
      step: entries per row to add at a time.
    """
    if not matrix.columns.shape[0]:
        return total
    start = matrix.starts[rows]
    end = jnp.where(weights == 0, start, matrix.starts[rows + 1])
    output_row = jnp.arange(rows.shape[0])[:, None]

    def add(n: jax.Array, total: jax.Array) -> jax.Array:
        position = start[:, None] + (n * step + jnp.arange(step))[None]  # [B, step]
        column = jnp.take(matrix.columns, position, mode="clip")
        column = jnp.where(position < end[:, None], column, total.shape[1])
        value = weights[:, None] * jnp.take(matrix.values, position, mode="clip")
        return total.at[output_row, column].add(value, mode="drop")

    return jax.lax.fori_loop(0, -(-(end - start).max() // step), add, total)


def product_rows(left: Csr, right: Csr, rows: jax.Array, width: int, *, step: int) -> jax.Array:
    """Return rows [B] of left @ right as a dense [B, width].

    Both factors are sparse. The cost is the entries of `right` in the rows that a row of `left`
    names, `step` at a time.
    """

    def some(rows: jax.Array) -> jax.Array:
        total = jnp.zeros((rows.shape[0], width), right.values.dtype)
        if not left.columns.shape[0]:
            return total
        start, end = left.starts[rows], left.starts[rows + 1]

        def add(n: jax.Array, total: jax.Array) -> jax.Array:
            position = start + n
            weight = jnp.where(position < end, jnp.take(left.values, position, mode="clip"), 0)
            inner = jnp.take(left.columns, position, mode="clip")
            return add_rows(total, right, inner, weight, step=step)

        return jax.lax.fori_loop(0, (end - start).max(), add, total)

    return one_by_one(some, rows)


def one_by_one(function: Callable[[jax.Array], jax.Array], rows: jax.Array) -> jax.Array:
    """Apply `function` to rows [B], on a CPU one by one.

    Other platforms take all rows at once; on a CPU all would wait for the longest.
    """
    in_turn = functools.partial(jax.lax.map, lambda row: function(row[None])[0])
    return jax.lax.platform_dependent(rows, cpu=in_turn, default=function)
