"""Eight-bit decoder kernels by qwix, quantized per output channel.

Each layer of a stacked kernel has one scale for each output. That is half of bfloat16's memory,
and half of what decoding reads for a token. Computation stays in the tower's dtype. Parameters
are quantized one by one as they are placed on devices.
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
    """`nnx.Linear` whose kernel may be qwix's QArray."""

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        kernel = self.kernel.get_value()
        if not hasattr(kernel, "qvalue"):
            return super().__call__(x)
        import qwix

        y = qwix.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ()))).astype(x.dtype)
        if self.bias is None:
            return y
        return y + self.bias[...].reshape((1,) * (y.ndim - 1) + (-1,))


def check() -> None:
    """Check that qwix is installed.

    Raises:
      InputError: qwix is not installed.
    """
    if importlib.util.find_spec("qwix") is None:
        raise InputError("int8 weights need qwix; install it with pip install 'mmjax[int8]'")


def of(name: str) -> Callable[[jax.Array], Any] | None:
    """Return the quantizer of a parameter [N, in, out], or None.

    It is applied when the parameter is placed on devices.
    """
    if not KERNELS.fullmatch(name):
        return None
    import qwix

    return jax.jit(lambda kernel: qwix.quantize(kernel, "int8", channelwise_axes=[0, 2]))
