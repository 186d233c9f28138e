"""Shared parts of convolutional towers: layers, key-map rules, class counts."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.encoders.checkpoints import hub
from mmjax.encoders.checkpoints.hub import Rule
from mmjax.encoders.checkpoints.weights import tensors
from mmjax.encoders.layers import ACTIVATIONS, BatchNorm


class Conv(nnx.Module):
    """Convolution of feature maps [B, H, W, C], as torch's Conv2d.

    Sums are float32.

    Args:
      padding: zeros on every side, or (above and left, below and right), or "SAME": TensorFlow's,
        which gives ceil(H / stride) rows and puts an odd row of padding below.
      groups: number of groups of channels that do not mix; 1, or as many as channels and features
        (depthwise).
    """

    def __init__(
        self,
        channels: int,
        features: int,
        window: int = 1,
        *,
        stride: int = 1,
        padding: int | tuple[int, int] | str = 0,
        groups: int = 1,
        bias: bool = False,
        rngs: nnx.Rngs,
    ):
        if isinstance(padding, int):
            padding = (padding, padding)
        self.stride, self.groups = stride, groups
        self.padding = padding if isinstance(padding, str) else (padding, padding)
        init = nnx.initializers.lecun_normal()
        shape = (window, window, channels // groups, features)
        self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(features)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...]
        window, strides = kernel.shape[:2], (self.stride, self.stride)
        padding: Sequence[tuple[int, int]]
        if isinstance(self.padding, str):
            padding = jax.lax.padtype_to_pads(x.shape[1:3], window, strides, self.padding)
        else:
            padding = self.padding

        def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return jax.lax.conv_general_dilated(
                x,
                kernel,
                strides,
                padding,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=self.groups,
                preferred_element_type=jnp.float32,
            )

        if window == (1, 1) and self.groups == 1 and not np.any(padding):
            x = x[:, :: self.stride, :: self.stride]
            y = jnp.einsum("bhwi,io->bhwo", x, kernel[0, 0], preferred_element_type=jnp.float32)
        elif self.groups == x.shape[-1] == kernel.shape[-1]:
            # On CPUs XLA's own depthwise convolution is 10 to 50 times slower than shifted sums.
            shift = partial(shifted_sum, stride=self.stride, padding=padding)
            y = jax.lax.platform_dependent(x, kernel, cpu=shift, default=convolve)
        else:
            y = convolve(x, kernel)
        if self.bias is not None:
            y += self.bias[...].astype(jnp.float32).reshape(1, 1, 1, -1)
        return y.astype(x.dtype)


def shifted_sum(
    x: jax.Array, kernel: jax.Array, *, stride: int, padding: Sequence[tuple[int, int]]
) -> jax.Array:
    """Compute a depthwise convolution as a sum of shifted maps.

    The sum runs over the positions of the window, in float32.

    Args:
      x: [B, H, W, C].
      kernel: [window, window, 1, C].
    """
    x = jnp.pad(x, ((0, 0), *padding, (0, 0))).astype(jnp.float32)
    kernel = kernel.astype(jnp.float32)
    window = kernel.shape[:2]
    # Exclusive ends of rows and columns of the map shifted by zero.
    ends = [(n - k) // stride * stride + 1 for n, k in zip(x.shape[1:3], window, strict=True)]
    total = jnp.float32(0)
    for i, j in np.ndindex(window):
        shifted = x[:, i : i + ends[0] : stride, j : j + ends[1] : stride]
        total += shifted * kernel[i, j].reshape(1, 1, 1, -1)
    return total


class ConvNorm(nnx.Module):
    """Convolution, BatchNorm and an optional activation."""

    def __init__(
        self,
        channels: int,
        features: int,
        window: int = 1,
        *,
        activation: str | None = None,
        epsilon: float = 1e-5,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        self.activation = ACTIVATIONS[activation] if activation else None
        self.conv = Conv(channels, features, window, **options, rngs=rngs)
        self.norm = BatchNorm(features, epsilon, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.norm(self.conv(x))
        return self.activation(x) if self.activation else x


def conv_norm(conv: str, norm: str, target: str) -> list[Rule]:
    """Return the rules of a `ConvNorm`.

    torch names its convolution and norm separately. All three names come without their last parts.
    """
    return [*hub.conv(conv, f"{target}.conv"), *hub.batch_norm(norm, f"{target}.norm")]


def count_classes(source: Path, classifier: str, width: int) -> int | None:
    """Return the number of classes of a checkpoint's classifier.

    None where it has no linear classifier of `width` inputs.
    """
    for name, read in tensors(source):
        if re.fullmatch(classifier + r"\.weight", name):
            shape = read().shape
            return shape[0] if shape[1:] == (width,) else None
    return None
