"""Item features that each process reads for its own devices only."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding


@dataclass(frozen=True, eq=False)
class LazyFeatures:
    """Item features [I, F] that are not read yet.

    A recommender gets them where several devices share the rows. A function of single rows gives
    new lazy features (`by_rows`). The values come from `read`, laid out on a mesh; from `array`, in
    a program that has them as an argument; or as a NumPy array, all on the host.
    """

    shape: tuple[int, int]
    dtype: np.dtype
    # (sharding, N) -> array [N, F] with N >= I, whose rows from I on are zeros; each process reads
    # the rows of its own devices. With None as the sharding it returns a NumPy array.
    read: Callable[[NamedSharding | None, int], Any]
    some: Callable[[], bool]  # whether any value is not zero
    digest: str = ""  # hash of the content, if known
    argument: Callable[[], jax.Array] | None = None

    ndim = 2

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(None, self.shape[0]), dtype)

    def within(self, argument: jax.Array) -> "LazyFeatures":
        """Bind these features to an argument of a program."""
        return replace(self, argument=lambda: argument)

    def array(self) -> jax.Array:
        return jnp.asarray(np.asarray(self)) if self.argument is None else self.argument()


def by_rows(function: Callable[..., jax.Array], *features: Any) -> Any:
    """Apply a row-wise function to features, each [I, F].

    The function maps each row to one row, and zeros to zeros. The result is lazy if all features
    are lazy. Otherwise it is computed at once, also while a program is traced.
    """
    if not all(isinstance(x, LazyFeatures) for x in features):
        with jax.ensure_compile_time_eval():
            return function(*map(jnp.asarray, features))

    def read(where: NamedSharding | None, count: int) -> jax.Array:
        rows = [x.read(where, count) for x in features]
        with jax.ensure_compile_time_eval():
            return jax.jit(function, out_shardings=where)(*rows)

    like = jax.eval_shape(function, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in features))
    return LazyFeatures(
        like.shape,
        like.dtype,
        read,
        some=lambda: any(x.some() for x in features),
        argument=None
        if any(x.argument is None for x in features)
        else lambda: function(*(x.array() for x in features)),
    )


def array(features: Any) -> jax.Array:
    """Return the values of lazy or plain features."""
    return features.array() if isinstance(features, LazyFeatures) else jnp.asarray(features)
