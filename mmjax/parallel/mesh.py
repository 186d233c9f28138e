"""Build the mesh of devices and the shardings on it.

No other module of the library asks JAX for devices.
"""

import contextlib
import math
import re
import warnings
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import psutil
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmjax.core.errors import InputError
from mmjax.parallel.lazy_features import LazyFeatures

AXES = ("trial", "data", "model")
Put = Callable[[Any, NamedSharding], Any]


def make(spec: str = "data=-1", *, own: bool = False) -> Mesh:
    """Build a mesh with the axes trial, data and model.

    Args:
      spec: sizes of the axes, e.g. `"data=4,model=2"`. Axes that are not named have size 1. One
        size may be -1: as many devices as the other axes leave. If the sizes ask for fewer devices
        than there are, the first ones are used.
      own: use the devices of this process only, instead of those of all processes.

    Raises:
      InputError: an unknown or repeated axis, a size that is no number, two sizes of -1, or more
        devices than there are.
    """
    sizes, named = dict.fromkeys(AXES, 1), set()
    for part in filter(None, (part.strip() for part in spec.split(","))):
        match = re.fullmatch(r"(\w+)=(-1|[1-9]\d*)", part)
        if not match or match[1] not in sizes:
            raise InputError(
                f"mesh {spec!r}: {part!r} is not AXIS=SIZE with an axis of {', '.join(AXES)}"
            )
        if match[1] in named:
            raise InputError(f"mesh {spec!r} names {match[1]} twice; name each axis once")
        named.add(match[1])
        sizes[match[1]] = int(match[2])
    devices = jax.local_devices() if own else jax.devices()
    warning = slow_scatter(devices[0].platform, jaxlib.__version__)
    if warning:
        warnings.warn(warning, RuntimeWarning, stacklevel=2)
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1:
        raise InputError(f"mesh {spec!r}: more than one size is -1; give all but one")
    if fixed > len(devices) or (free and len(devices) % fixed):
        raise InputError(
            f"mesh {spec!r} does not fit {len(devices)} {devices[0].platform} devices; the sizes "
            "multiply to at most that many, and with -1 divide them"
        )
    if free:
        sizes[free[0]] = len(devices) // fixed
    shape = tuple(sizes.values())
    used = devices[: math.prod(shape)]
    return jax.make_mesh(shape, AXES, (AxisType.Auto,) * len(AXES), devices=used)


def rows(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: leading axis over `data`."""
    return NamedSharding(mesh, PartitionSpec("data"))


def trials(mesh: Mesh) -> NamedSharding:
    """Return the sharding that splits the leading axis over `trial`.

    Where that axis has size 1, every device holds the whole array.
    """
    return NamedSharding(mesh, PartitionSpec("trial" if mesh.shape["trial"] > 1 else None))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that puts whole arrays on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put(tree: Any, where: NamedSharding) -> Any:
    """Put host values or lazy features on the devices.

    Every process must have the same host values.
    """
    if isinstance(tree, LazyFeatures):
        return tree.read(where, tree.shape[0])
    if where.is_fully_addressable:
        return jax.device_put(tree, where)

    def one(x: Any) -> jax.Array:
        x = np.asarray(x)
        local_slices = where.addressable_devices_indices_map(x.shape).items()
        parts = [jax.device_put(x[index], device) for device, index in local_slices]
        return jax.make_array_from_single_device_arrays(x.shape, where, parts)

    return jax.tree.map(one, tree)


def plan(tree: Any, where: NamedSharding) -> Any:
    """Return the shapes and shardings of what `put` would place.

    Programs can be compiled for them, not run.
    """

    def one(x: Any) -> jax.ShapeDtypeStruct:
        kind = x if isinstance(x, LazyFeatures) else jax.typeof(x)
        return jax.ShapeDtypeStruct(kind.shape, kind.dtype, sharding=where)

    return jax.tree.map(one, tree)


def host_staging(mesh: Mesh) -> contextlib.AbstractContextManager:
    """Return a context that creates arrays on the host.

    It is for arrays that several devices will share: the host has room for them whole. With one
    device the context does nothing, and the device creates its own arrays.
    """
    if mesh.size == 1:
        return contextlib.nullcontext()
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS leaves the host out
        return contextlib.nullcontext()


def use(mesh: Mesh) -> contextlib.AbstractContextManager:
    """Return a context in which programs can ask for the mesh.

    Programs for several devices are traced in it. With one device it does nothing.
    """
    return jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext()


def flash_attention(dtype: Any) -> Literal["cudnn"] | None:
    """Return the name of the attention kernel, or None.

    It is the `implementation` for `jax.nn.dot_product_attention`: cuDNN's, on a GPU with bfloat16
    or float16.
    """
    halves = (jnp.bfloat16, jnp.float16)
    return "cudnn" if jax.default_backend() == "gpu" and dtype in halves else None


def on_cpu() -> bool:
    """Return whether arrays without a mesh lie on a CPU."""
    return jax.default_backend() == "cpu"


def is_cpu(mesh: Mesh) -> bool:
    """Return whether the mesh is made of CPU devices."""
    return mesh.devices.flat[0].platform == "cpu"


def free_memory(mesh: Mesh) -> int:
    """Return the free memory of each device, in bytes.

    On a CPU it is the machine's available memory, divided among the devices of the mesh.
    """
    device = mesh.devices.flat[0]
    if device.platform == "cpu":
        return psutil.virtual_memory().available // mesh.size
    memory = device.memory_stats()
    return memory["bytes_limit"] - memory["bytes_in_use"]


def slow_scatter(platform: str, version: str) -> str | None:
    """Return a warning if this backend has slow embedding gradients, else None.

    jaxlib 0.10.2 to 0.11.0 compile a float32 scatter-add for NVIDIA to a compare-and-swap loop
    (openxla/xla#46225), which makes every embedding gradient hundreds of times too slow; 0.11.1
    fixed it.
    """
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if platform in ("gpu", "cuda") and (0, 10, 2) <= numbers <= (0, 11, 0):
        return (
            f"jaxlib {version} on CUDA: float32 scatter-add, and with it every embedding gradient, "
            "runs hundreds of times too slow (openxla/xla#46225); install jaxlib >= 0.11.1 "
            "(Python >= 3.12): pip install 'mmjax[cuda]'"
        )
    return None
