"""Weights in eight bits, by qwix: the decoder's kernels, a scale an output of each layer.

Half of bfloat16's memory, and half of what decoding reads a token; computation stays in the tower's
dtype. Parameters become eight bits one by one as they are placed on devices.
"""

import importlib.util
import re
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from mmjax.core.errors import InputError

KERNELS = re.compile(r"decoder\.blocks\..*\.kernel")


class Dense(nnx.Linear):
    """nnx.Linear whose kernel may be qwix's QArray."""

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel.get_value()
        if not hasattr(kernel, "qvalue"):
            return super().__call__(x)
        import qwix

        y = qwix.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ()))).astype(x.dtype)
        if self.bias is None:
            return y
        return y + self.bias[...].reshape((1,) * (y.ndim - 1) + (-1,))


def check() -> None:
    """
    Raises:
      InputError: qwix is not installed.
    """
    if importlib.util.find_spec("qwix") is None:
        raise InputError("int8 weights need qwix; install it with pip install 'mmjax[int8]'")


def of(name: str) -> Callable[[jax.Array], Any] | None:
    """What becomes of the parameter of this name [N, in, out] when it is placed, if anything."""
    if not KERNELS.fullmatch(name):
        return None
    import qwix

    return jax.jit(lambda kernel: qwix.quantize(kernel, "int8", channelwise_axes=[0, 2]))
