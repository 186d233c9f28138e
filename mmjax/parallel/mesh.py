"""The mesh of devices and the shardings on it; nothing else asks for devices."""

import contextlib
import math
import re
import warnings
from collections.abc import Callable
from typing import Any

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
    """A mesh with the axes trial, data and model from e.g. `"data=4,model=2"`.

    It is made of the devices of all processes, or of this one's `own`.

    Axes that are not named have size 1 and one of them may be -1: what the others leave over.
    The first devices are used when the sizes ask for fewer than there are.

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
    """Leading axis split over `data`: a batch."""
    return NamedSharding(mesh, PartitionSpec("data"))


def trials(mesh: Mesh) -> NamedSharding:
    """Leading axis split over `trial`; the same whole array on every device where that is 1."""
    return NamedSharding(mesh, PartitionSpec("trial" if mesh.shape["trial"] > 1 else None))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put(tree: Any, where: NamedSharding) -> Any:
    """Puts host values that every process has, or features that are unread, on the devices."""
    if isinstance(tree, LazyFeatures):
        return tree.read(where, tree.shape[0])
    if where.is_fully_addressable:
        return jax.device_put(tree, where)

    def one(x: Any) -> jax.Array:
        x = np.asarray(x)
        own = where.addressable_devices_indices_map(x.shape).items()
        parts = [jax.device_put(x[at], device) for device, at in own]
        return jax.make_array_from_single_device_arrays(x.shape, where, parts)

    return jax.tree.map(one, tree)


def plan(tree: Any, where: NamedSharding) -> Any:
    """What `put` would put there, as shapes: programs can be compiled for them, not run."""

    def one(x: Any) -> jax.ShapeDtypeStruct:
        kind = x if isinstance(x, LazyFeatures) else jax.typeof(x)
        return jax.ShapeDtypeStruct(kind.shape, kind.dtype, sharding=where)

    return jax.tree.map(one, tree)


def host_staging(mesh: Mesh) -> contextlib.AbstractContextManager:
    """Where that is made which several devices will share: on the host, where there is room for it
    whole. One device makes its own."""
    if mesh.size == 1:
        return contextlib.nullcontext()
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS leaves the host out
        return contextlib.nullcontext()


def use(mesh: Mesh) -> contextlib.AbstractContextManager:
    """Where programs for a mesh of several devices are traced, so that they can ask for it."""
    return jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext()


def flash_attention(dtype: Any) -> str | None:
    """The attention kernel for `jax.nn.dot_product_attention`: cuDNN's where it has one."""
    halves = (jnp.bfloat16, jnp.float16)
    return "cudnn" if jax.default_backend() == "gpu" and dtype in halves else None


def on_cpu() -> bool:
    """Whether arrays without a mesh lie on a CPU."""
    return jax.default_backend() == "cpu"


def is_cpu(mesh: Mesh) -> bool:
    """Whether the mesh is made of CPU devices."""
    return mesh.devices.flat[0].platform == "cpu"


def free_memory(mesh: Mesh) -> int:
    """Bytes that each device of the mesh has left; on a CPU what the machine has, shared by all."""
    device = mesh.devices.flat[0]
    if device.platform == "cpu":
        return psutil.virtual_memory().available // mesh.size
    memory = device.memory_stats()
    return memory["bytes_limit"] - memory["bytes_in_use"]


def slow_scatter(platform: str, version: str) -> str | None:
    """What to say of a backend on which every embedding gradient is hundreds of times too slow.

    jaxlib 0.10.2 to 0.11.0 compile a float32 scatter-add for NVIDIA to a compare-and-swap loop
    (openxla/xla#46225); 0.11.1 mended it.
    """
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if platform in ("gpu", "cuda") and (0, 10, 2) <= numbers <= (0, 11, 0):
        return (
            f"jaxlib {version} on CUDA: float32 scatter-add, and with it every embedding gradient, "
            "runs hundreds of times too slow (openxla/xla#46225); install jaxlib >= 0.11.1 "
            "(Python >= 3.12): pip install 'mmjax[cuda]'"
        )
    return None
