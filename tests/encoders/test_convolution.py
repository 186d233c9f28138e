"""Convolutions against torch: every window, stride, padding and grouping that a tower uses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.encoders.checkpoints import hub
from mmjax.encoders.towers.convolution import Conv, ConvNorm, conv_norm, count_classes, shifted_sum


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def make(kernel, bias=None, *, groups=1, **options):
    """A Conv of these arrays; kernel: [window, window, I / groups, O]."""
    window, _, channels, features = kernel.shape
    conv = nnx.eval_shape(
        lambda: Conv(
            channels * groups,
            features,
            window,
            groups=groups,
            bias=bias is not None,
            **options,
            rngs=nnx.Rngs(0),
        )
    )
    conv.kernel = nnx.Param(jnp.array(kernel))
    if bias is not None:
        conv.bias = nnx.Param(jnp.array(bias))
    return conv


def run(module, x):
    """As one program: on its own each operation would be one."""
    return jax.jit(lambda x: module(x))(x)


@pytest.mark.parametrize(
    ("window", "stride", "padding", "groups"),
    [
        (1, 1, 0, 1),
        (1, 2, 0, 1),
        (1, 1, 1, 1),
        (3, 1, 1, 1),
        (7, 2, 3, 1),
        (3, 2, (0, 1), 1),
        (3, 1, 1, 3),
        (3, 1, 1, 6),
        (5, 2, (1, 2), 6),
        (1, 2, 0, 6),
    ],
)
def test_conv_equals_torch(torch, window, stride, padding, groups):
    kernel, bias, x = noise(6, 6 // groups, window, window), noise(6, seed=1), noise(2, 9, 8, 6)
    kernel /= window
    conv = make(hub.channels_last(kernel), bias, stride=stride, padding=padding, groups=groups)
    before, after = (padding, padding) if isinstance(padding, int) else padding
    edged = torch.nn.functional.pad(torch.tensor(x).permute(0, 3, 1, 2), (before, after) * 2)
    wanted = torch.nn.functional.conv2d(
        edged, torch.tensor(kernel), torch.tensor(bias), stride=stride, groups=groups
    )
    np.testing.assert_allclose(run(conv, x), wanted.permute(0, 2, 3, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("groups", [1, 6])
@pytest.mark.parametrize(("window", "stride", "size"), [(3, 2, 8), (5, 2, 7), (3, 1, 5)])
def test_same_padding_is_tensorflows(window, stride, size, groups):
    """Of ceil(H / stride) places the first sees what lies floor(missing / 2) before the map."""
    kernel, x = noise(window, window, 6 // groups, 6), noise(1, size, size, 6)
    places = -(-size // stride)
    missing = max(0, (places - 1) * stride + window - size)
    edges = (missing // 2, missing - missing // 2)
    got = run(make(kernel, stride=stride, padding="SAME", groups=groups), x)
    wanted = run(
        make(kernel, stride=stride, groups=groups), np.pad(x, ((0, 0), edges, edges, (0, 0)))
    )
    assert got.shape == (1, places, places, 6)
    np.testing.assert_allclose(got, wanted, atol=1e-5, rtol=0)


def test_accelerators_depthwise_convolution_is_the_shifted_sum():
    """What other platforms run is XLA's own, run here too."""
    x, kernel = noise(2, 9, 8, 6), noise(5, 5, 1, 6)
    own = jax.lax.conv_general_dilated(
        x,
        kernel,
        (2, 2),
        ((1, 2), (1, 2)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=6,
    )
    shifted = jax.jit(lambda x: shifted_sum(x, kernel, stride=2, padding=((1, 2), (1, 2))))(x)
    np.testing.assert_allclose(shifted, own, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 8])
def test_sums_are_float32_in_bfloat16(groups):
    x = jnp.array(noise(1, 6, 6, 8)).astype(jnp.bfloat16)
    kernel = jnp.array(noise(3, 3, 8 // groups, 8)).astype(jnp.bfloat16)
    half = run(make(kernel, padding=1, groups=groups), x)
    whole = make(kernel.astype(jnp.float32), padding=1, groups=groups)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, run(whole, x.astype(jnp.float32)).astype(jnp.bfloat16))


def test_conv_norm_equals_torch(torch, tmp_path):
    from safetensors.torch import save_file

    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1, bias=False), torch.nn.BatchNorm2d(4, eps=1e-3)
    ).eval()
    with torch.no_grad():
        for value in (*net[1].parameters(), net[1].running_mean):
            value.normal_()
        net[1].running_var.uniform_(0.5, 2)
    save_file(net.state_dict(), tmp_path / "model.safetensors")

    def build():
        return ConvNorm(3, 4, 3, padding=1, epsilon=1e-3, activation="relu", rngs=nnx.Rngs(0))

    rules = [rule._replace(path=rule.path and rule.path[1:]) for rule in conv_norm("0", "1", "")]
    module = hub.merge(*hub.load_module(build, tmp_path, rules))
    x = noise(2, 5, 6, 3)
    with torch.no_grad():
        wanted = net(torch.tensor(x).permute(0, 3, 1, 2)).relu().permute(0, 2, 3, 1)
    np.testing.assert_allclose(run(module, x), wanted, atol=1e-5, rtol=0)


def test_a_classifier_is_counted_if_it_follows_the_vector(tmp_path):
    from safetensors.numpy import save_file

    save_file({"fc.weight": noise(5, 4), "fc.bias": noise(5)}, tmp_path / "model.safetensors")
    assert count_classes(tmp_path, "fc", 4) == 5
    assert count_classes(tmp_path, "fc", 6) is None
    assert count_classes(tmp_path, "head", 4) is None
