"""Exact k-NN graphs of items by the cosine of their features.

Only a block of the similarities is in memory at a time. On one device each block is computed once:
a pair of row blocks serves the neighbours of both. On several devices, each computes the blocks of
its own rows.
"""

import functools
import hashlib
import io
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from mmjax.core import files, storage
from mmjax.core.errors import InputError
from mmjax.ops.normalize import SHORTEST, unit
from mmjax.parallel import distributed, table_sharding
from mmjax.parallel import mesh as meshes
from mmjax.parallel.lazy_features import LazyFeatures

LARGEST = 4096  # most rows of a block: 64 MiB of similarities
FEWEST = 8  # least number of blocks, so that little is computed twice or for padding
PART = 32  # columns of a part; `_top` takes the maximum of each part first


class Neighbours(NamedTuple):
    """The k most similar items of each item, most similar first.

    An item counts as a neighbour of itself.
    """

    values: jax.Array  # [I, k] cosines; -inf where there are fewer than k
    columns: jax.Array  # [I, k] int32


def nearest(x: jax.Array, k: int) -> Neighbours:
    """Find the k nearest rows of each row of x [I, F].

    Ties go to the lower item. Rows of zeros have no neighbours and are nobody's neighbour. The
    function can be traced or called directly; it has no gradient (`cosines` has one). Where the
    mesh splits tables, the devices share the work.
    """
    count, mesh = x.shape[0], table_sharding.current_mesh()
    if mesh is not None and count > table_sharding.shard_count(mesh):
        return _around(x, k, mesh)
    blocks = max(-(-count // LARGEST), min(FEWEST, -(-count // (4 * PART))))
    size = -(-count // (blocks * PART)) * PART
    x = jax.lax.stop_gradient(x)
    nonzero = jnp.square(x).sum(axis=1) > SHORTEST
    x = jnp.pad(unit(x), ((0, blocks * size - count), (0, 0)))
    nonzero = jnp.pad(nonzero, (0, blocks * size - count))
    k_inside, zero = min(k, size), jnp.int32(0)  # like the starts of blocks, also in x64

    def merge(best: Neighbours, row: jax.Array, found: jax.Array, column: jax.Array) -> Neighbours:
        """Merge one block of cosines into the neighbours so far.

        `found` [size, size] are the cosines of rows from `row` on with columns from `column` on.
        """
        alive = jax.lax.dynamic_slice(nonzero, (column,), (size,))
        values, columns = _top(jnp.where(alive[None], found, -jnp.inf), k_inside)
        current = Neighbours(*(jax.lax.dynamic_slice(a, (row, zero), (size, k)) for a in best))
        values = jnp.concatenate([current.values, values], axis=1)
        columns = jnp.concatenate([current.columns, columns + column], axis=1)
        values, which = jax.lax.top_k(values, k)
        merged = Neighbours(values, jnp.take_along_axis(columns, which, axis=1))
        return Neighbours(
            *(
                jax.lax.dynamic_update_slice(old, part, (row, zero))
                for old, part in zip(best, merged, strict=True)
            )
        )

    def pair(n: jax.Array, best: Neighbours) -> Neighbours:
        row, column = first[n], second[n]

        def block(start: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice(x, (start, zero), (size, x.shape[1]))

        found = block(row) @ block(column).T
        best = merge(best, row, found, column)

        # A block's rows meet the columns in ascending order, so that ties stay with the lower.
        def other(best: Any) -> Any:
            return merge(best, column, found.T, row)

        return jax.lax.cond(row != column, other, lambda best: best, best)

    rows, columns = np.triu_indices(blocks)
    first, second = (jnp.asarray(a * size, jnp.int32) for a in (rows, columns))
    shape = blocks * size, k
    best = Neighbours(jnp.full(shape, -jnp.inf, x.dtype), jnp.zeros(shape, jnp.int32))
    best = jax.lax.fori_loop(0, len(rows), pair, best)
    found = nonzero[:, None] & jnp.isfinite(best.values)
    values = jnp.where(found, best.values, -jnp.inf)
    return Neighbours(values[:count], jnp.where(found, best.columns, 0)[:count])


def _around(x: jax.Array, k: int, mesh: AbstractMesh) -> Neighbours:
    """Find the nearest rows on several devices.

    Each device keeps the neighbours of its own rows. The blocks of all devices go round in a ring,
    so that no device ever holds more than its own block and a passing one.
    """
    count, devices = x.shape[0], table_sharding.shard_count(mesh)
    size = -(-count // (devices * PART)) * PART
    # Any cycle will do, since a block brings its first column; JAX 0.12 wants the mesh's order.
    axes = tuple(axis for axis in mesh.axis_names if axis in table_sharding.AXES)
    ring = [(n, (n - 1) % devices) for n in range(devices)]
    chunk = next(n for n in range(min(size, LARGEST), 0, -1) if size % n == 0)

    def own(x: jax.Array) -> Neighbours:
        x = unit(x)
        first = (jax.lax.axis_index(table_sharding.AXES) * size).astype(jnp.int32)
        nonzero = jnp.square(x).sum(axis=1) > 0

        def meet(mine: jax.Array, best: Neighbours, block: tuple) -> Neighbours:
            passing, alive, column = block
            found = jnp.where(alive[None], mine @ passing.T, -jnp.inf)
            values, columns = _top(found, min(k, size))
            values = jnp.concatenate([best.values, values], axis=1)
            columns = jnp.concatenate([best.columns, columns + column], axis=1)
            # By value, then by item: blocks do not pass in the order of the items.
            values, columns = jax.lax.sort((-values, columns), num_keys=2)
            return Neighbours(-values[:, :k], columns[:, :k])

        def turn(_: jax.Array, carry: tuple) -> tuple:
            best, block = carry

            def cut(a: jax.Array) -> jax.Array:
                return a.reshape(-1, chunk, a.shape[1])

            merged = jax.lax.map(
                lambda part: meet(part[0], part[1], block), (cut(x), jax.tree.map(cut, best))
            )
            best = jax.tree.map(lambda a: a.reshape(size, k), merged)
            return best, jax.lax.ppermute(block, axes, ring)

        empty = jnp.full((size, k), -jnp.inf, x.dtype), jnp.full((size, k), count, jnp.int32)
        best, _ = jax.lax.fori_loop(0, devices, turn, (Neighbours(*empty), (x, nonzero, first)))
        found = nonzero[:, None] & jnp.isfinite(best.values)
        return Neighbours(
            jnp.where(found, best.values, -jnp.inf), jnp.where(found, best.columns, 0)
        )

    x = table_sharding.pad_axis(jax.lax.stop_gradient(x), devices * size)
    rows = PartitionSpec(table_sharding.AXES)
    found = table_sharding.on_each_device(own, mesh, rows, rows)(x)
    return Neighbours(found.values[:count], found.columns[:count])


def _top(values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Return the `lax.top_k` of rows whose length PART divides.

    Exact, with the tie order of `lax.top_k`. The k largest values of a row are in the k parts with
    the largest maxima. Taking maxima is fast, and little is left to sort.
    """
    rows = values.shape[0]
    parts = values.reshape(rows, -1, PART)
    if parts.shape[1] <= 2 * k:
        return jax.lax.top_k(values, k)
    chosen = jnp.sort(jax.lax.top_k(parts.max(axis=-1), k)[1], axis=1)  # [rows, k], by column
    candidates = jnp.take_along_axis(parts, chosen[:, :, None], axis=1).reshape(rows, k * PART)
    values, which = jax.lax.top_k(candidates, k)
    part = jnp.take_along_axis(chosen, which // PART, axis=1)
    return values, part * PART + which % PART


def cosines(x: jax.Array, columns: jax.Array) -> jax.Array:
    """Compute each row's cosines with k other rows.

    Shapes: x [I, F], columns int [I, k] to [I, k]. Differentiable.
    """
    x = unit(x)
    return (x[:, None] * x[columns]).sum(axis=-1)


@functools.partial(jax.jit, static_argnums=1)
def _nearest(x: jax.Array, k: int) -> Neighbours:
    return nearest(x.astype(jnp.promote_types(x.dtype, jnp.float32)), k)


def _on_mesh(x: np.ndarray | LazyFeatures, k: int, mesh: Mesh) -> Neighbours:
    """Run `nearest` on a mesh, each device with its own rows.

    The rows are on the host or lazy (`LazyFeatures`).
    """
    rows = table_sharding.pad_axis(x, table_sharding.shard_count(mesh))
    rows = meshes.put(rows, NamedSharding(mesh, PartitionSpec(table_sharding.AXES)))
    with meshes.use(mesh):
        neighbours = jax.jit(_nearest, static_argnums=1, out_shardings=meshes.replicated(mesh))(
            rows, k
        )
    return jax.tree.map(lambda part: np.asarray(part)[: x.shape[0]], neighbours)


def build(features: Any, k: int, folder: str | Path = "", mesh: Mesh | None = None) -> Neighbours:
    """Find the k nearest items, or read them from a cache folder.

    Features [I, F] are on the host or lazy (`LazyFeatures`); those of less than float32 are widened
    first. A mesh of several devices shares the work. The file in `folder` is named by the hash of
    the features and options; without a folder nothing is kept.

    Raises:
      InputError: k is not between 1 and I.
    """
    if not 1 <= k <= features.shape[0]:
        raise InputError(
            f"top_k={k} neighbours of {features.shape[0]} items, each counted as its own first: "
            f"choose a number between 1 and {features.shape[0]}"
        )

    def find() -> Neighbours:
        if mesh is None or table_sharding.shard_count(mesh) == 1:
            return jax.tree.map(np.asarray, _nearest(jnp.asarray(features), k))
        # A thread of its own, since a recommender builds its graphs while it is being traced.
        with futures.ThreadPoolExecutor(1) as thread:
            rows = features if isinstance(features, LazyFeatures) else np.asarray(features)
            return thread.submit(_on_mesh, rows, k, mesh).result()

    if not folder:
        return find()
    digest = hashlib.sha256(f"1 {k} {features.shape} {features.dtype}".encode())
    content_digest = isinstance(features, LazyFeatures) and features.digest
    digest.update(
        content_digest.encode()
        if content_digest
        else np.ascontiguousarray(features).view(np.uint8).data
    )
    path = storage.path(folder) / f"neighbours-{digest.hexdigest()[:24]}.npz"
    # Either all processes of a mesh compute the neighbours, or all read the file.
    if not distributed.all_true(files.exists(path)):
        neighbours, buffer = find(), io.BytesIO()
        np.savez(buffer, values=neighbours.values, columns=neighbours.columns)
        files.write_bytes(path, buffer.getvalue())
    with storage.open_file(path) as file, np.load(file) as arrays:
        return Neighbours(arrays["values"], arrays["columns"])


def weigh(
    found: Neighbours, how: str, *, eps: float = 0.0, self_one: bool = False
) -> sp.csr_matrix:
    """Build a frozen item graph [I, I] from neighbours.

    The graph is directed and in float64.

    Args:
      found: the neighbours of each item.
      how: `uniform`, every edge 1 / (k_i + eps) for an item's k_i neighbours (FREEDOM; k_i = k
        where no features are missing); or `cosine`, D^-1/2 S D^-1/2 of the cosines S with D the row
        sums on both sides (LATTICE). A row sum that is not positive counts as no edges.
      eps: see `uniform`.
      self_one: with `cosine`, set the diagonal of S to 1 first, as Elliot's LATTICE does.
    """
    count, k = found.values.shape
    valid = np.isfinite(found.values)
    rows = np.repeat(np.arange(count), k)[valid.ravel()]
    columns, values = found.columns[valid], found.values[valid].astype(np.float64)
    if how == "uniform":
        weights = 1 / (np.bincount(rows, minlength=count)[rows] + eps)
        return sp.csr_matrix((weights, (rows, columns)), shape=(count, count))
    matrix = sp.csr_matrix((values, (rows, columns)), shape=(count, count))
    if self_one:
        matrix = matrix.tolil()
        matrix.setdiag(np.where(valid.any(axis=1), 1.0, 0.0))
        matrix = matrix.tocsr()
    sums = np.asarray(matrix.sum(axis=1)).ravel()
    scale = sp.diags(np.power(sums, -0.5, out=np.zeros_like(sums), where=sums > 0))
    return (scale @ matrix @ scale).tocsr()
