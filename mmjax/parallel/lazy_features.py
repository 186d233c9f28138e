"""Item features that no process has read yet: each will read the rows of its own devices."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding


@dataclass(frozen=True, eq=False)
class LazyFeatures:
    """Features [I, F] as a recommender is given them where several devices share their rows.

    What treats rows one by one makes other unread features of them (`by_rows`). Their values are
    had by `read`, laid upon a mesh; by `array` in a program that they are an argument of; and as
    NumPy has them, all on the host.
    """

    shape: tuple[int, int]
    dtype: np.dtype
    # Of a sharding and a number of rows N >= I: the array [N, F], rows from I on being zeros, of
    # which each process has read what its devices hold. Of None: a NumPy array.
    read: Callable[[NamedSharding | None, int], Any]
    some: Callable[[], bool]  # whether there is anything but zeros
    digest: str = ""  # of their content, where it is known
    argument: Callable[[], jax.Array] | None = None

    ndim = 2

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(None, self.shape[0]), dtype)

    def within(self, argument: jax.Array) -> "LazyFeatures":
        """The same, in a program that is given them as this argument."""
        return replace(self, argument=lambda: argument)

    def array(self) -> jax.Array:
        return jnp.asarray(np.asarray(self)) if self.argument is None else self.argument()


def by_rows(function: Callable[..., jax.Array], *features: Any) -> Any:
    """`function`, which makes of each row one row, and of zeros zeros, of features [I, F] each:
    unread if they are, and if not computed at once, also while a program is traced."""
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
    """The values of features, unread or not."""
    return features.array() if isinstance(features, LazyFeatures) else jnp.asarray(features)
