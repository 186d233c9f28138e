"""Where the weights of an encoder lie: rules by name, checked for divisibility."""

import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# How a tower's parameters lie over `model`, by name: the first that matches whole. Of the two
# products of a block the first is split by its outputs, the second by its inputs, so that one sum
# over devices closes both; whatever is not named, or does not divide, is on every device.
SPLITS = (
    (r".*\b(?:query|key|value|qkv|gate|up)\.kernel", PartitionSpec(None, "model")),
    (r".*\b(?:query|key|value|qkv|gate|up)\.bias", PartitionSpec("model")),
    (r".*\b(?:out|down)\.kernel", PartitionSpec("model", None)),
    (r".*\.table", PartitionSpec("model", None)),
)
LARGE = 1 << 26  # numbers; a larger array is split over `data` too, and gathered layer by layer


def spread(
    params: Any,
    mesh: Mesh,
    table: Sequence[tuple[str, PartitionSpec]] = SPLITS,
    large: int = LARGE,
) -> Any:
    """Places a tree of parameters on the mesh, split as `table` says of their names.

    A spec speaks of an array's last axes; stacked layers have one before them. Leaves may be
    arrays, or anything with a shape whose parts are read by indexing it: each process then reads
    what its own devices hold, and what its attribute `then`, if it has one, makes of it takes its
    place.

    Args:
      large: arrays of at least so many numbers are split over `data` as well (FSDP).
    """

    def place(path: tuple, leaf: Any) -> jax.Array:
        name = ".".join(str(getattr(step, "key", step)) for step in path)
        found = (spec for pattern, spec in table if re.fullmatch(pattern, name))
        spec = next(found, PartitionSpec())
        axes = [None] * (leaf.ndim - len(spec)) + list(spec)[max(len(spec) - leaf.ndim, 0) :]
        axes = [
            axis if axis is None or size % mesh.shape[axis] == 0 else None
            for axis, size in zip(axes, leaf.shape, strict=True)
        ]
        if leaf.size >= large and "data" not in axes:
            # The longest axis that is free; never the layers', which a scan takes one by one.
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

        def part(index: tuple[slice, ...]) -> Any:
            key = str(index)  # read once, for however many devices hold it
            if key not in parts:
                parts[key] = leaf[index]
            return parts[key]

        placed = jax.make_array_from_callback(leaf.shape, sharding, part)
        then = getattr(leaf, "then", None)
        return placed if then is None else then(placed)

    return jax.tree_util.tree_map_with_path(place, params)
