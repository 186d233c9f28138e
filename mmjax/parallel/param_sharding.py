"""Shard encoder weights over a mesh by rules on their names.

An axis is not split if the size of its mesh axis does not divide it.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# How a tower's parameters are split over `model`, by name; the first full match counts. Of the two
# products of a block the first is split by its outputs, the second by its inputs, so that one sum
# over devices completes both. What no rule names, or what does not divide, is on every device.
SPLITS = (
    (r".*\b(?:query|key|value|qkv|gate|up)\.kernel", PartitionSpec(None, "model")),
    (r".*\b(?:query|key|value|qkv|gate|up)\.bias", PartitionSpec("model")),
    (r".*\b(?:out|down)\.kernel", PartitionSpec("model", None)),
    (r".*\.table", PartitionSpec("model", None)),
)
LARGE = 1 << 26  # numbers; an array of this size is also split over `data`, and gathered by layer


def spread(
    params: Any,
    mesh: Mesh,
    table: Sequence[tuple[str, PartitionSpec]] = SPLITS,
    large: int = LARGE,
) -> Any:
    """Place a tree of parameters on the mesh, split by name.

    Leaves are arrays, or objects with a shape whose parts are read by indexing. Of such an object
    each process reads what its own devices hold. If it has an attribute `then`, the result of
    `then(array)` takes the array's place.

    Args:
      table: pairs of a name pattern and a spec. A spec describes the last axes of an array; stacked
        layers have one axis before them.
      large: arrays of at least this many numbers are also split over `data` (FSDP).
    """

    def place(path: tuple, leaf: Any) -> jax.Array:
        name = ".".join(str(getattr(step, "key", step)) for step in path)
        matches = (spec for pattern, spec in table if re.fullmatch(pattern, name))
        spec = next(matches, PartitionSpec())
        axes = [None] * (leaf.ndim - len(spec)) + list(spec)[max(len(spec) - leaf.ndim, 0) :]
        axes = [
            axis if axis is None or size % mesh.shape[axis] == 0 else None
            for axis, size in zip(axes, leaf.shape, strict=True)
        ]
        if leaf.size >= large and "data" not in axes:
            # The longest free axis, but never that of the layers, which a scan iterates over.
            free = [
                n
                for n, axis in enumerate(axes)
                if axis is None and leaf.shape[n] % mesh.shape["data"] == 0 and n >= leaf.ndim - 2
            ]
            if free:
                axes[max(free, key=lambda n: leaf.shape[n])] = "data"
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        if isinstance(leaf, jax.Array):
            return jax.device_put(leaf, sharding)
        parts: dict[str, Any] = {}

        def part(index: tuple[slice, ...] | None) -> Any:
            key = str(index)  # read once, even if several devices hold it
            if key not in parts:
                parts[key] = leaf[index]
            return parts[key]

        placed = jax.make_array_from_callback(leaf.shape, sharding, part)
        then = getattr(leaf, "then", None)
        return placed if then is None else then(placed)

    return jax.tree_util.tree_map_with_path(place, params)
