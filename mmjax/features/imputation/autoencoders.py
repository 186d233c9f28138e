"""Imputation from the item's other modality by autoencoders (arXiv 2602.17354).

ae is an MLP from one modality to the other, trained on the items that have both. In gae its hidden
layers are graph convolutions over co-purchased items (Kipf and Welling, ICLR 2017). Features are
scaled to [0, 1], hidden layers are LeakyReLU, the output is a sigmoid under binary cross-entropy.
An item that lacks both modalities gets zeros and stays absent.

Published: 2048-1024-512-512-768 from image to text, 768-1024-2048 back, the latter with 1e-4 times
the output's L1 norm; ae with Adagrad 0.01, 1000 epochs, batch 32; gae with Adam 1e-4. Chosen here:

  other widths     narrowing F -> G: F/2, F/4, F/4; widening: G/2; both give the published ones
  scaling          by the least and largest value of each feature over the items that have it
  losses           cross-entropy is the mean over items and features, L1 the mean over items
  weights          uniform within 1/sqrt(inputs), biases too, as torch draws a Linear's; those of
                   convolutions Xavier-uniform with zero biases, as PyTorch Geometric draws them
  LeakyReLU        slope 0.01
  batches          shuffled each epoch, the last one shorter; gae steps once an epoch on all items
  gae's graph      D^-1/2 (A0 + I) D^-1/2, A0 the co-purchases without their diagonal, D row sums;
                   the last layer is dense
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.sparse as sp
from flax import nnx

from mmjax.core.errors import InputError
from mmjax.core.progress import Progress
from mmjax.features.imputation.missing import Gaps
from mmjax.ops import graph


class Autoencoder(nnx.Module):
    """Network from one modality to logits of the other.

    Shapes: features [B, F] to logits [B, G].
    """

    def __init__(self, widths: list[int], *, convolutions: bool, rngs: nnx.Rngs):
        *hidden, last = itertools.pairwise(widths)
        layer = _convolution if convolutions else _dense
        layers = [layer(*pair, rngs) for pair in hidden]
        self.layers = nnx.List([*layers, _dense(*last, rngs)])

    def __call__(self, x: jax.Array, neighbours: graph.Graph | None = None) -> jax.Array:
        """Compute the logits of a batch, or of all items.

        With `neighbours`, x is all items and the hidden layers are convolutions.
        """
        *hidden, last = self.layers
        for layer in hidden:
            x = x @ layer.kernel[...]
            x = x if neighbours is None else graph.propagate(neighbours, x)
            assert layer.bias is not None
            x = nnx.leaky_relu(x + layer.bias[...][None])
        return last(x)


def _dense(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    bound = inputs**-0.5
    bias = functools.partial(jax.random.uniform, minval=-bound, maxval=bound)
    return nnx.Linear(inputs, outputs, kernel_init=uniform, bias_init=bias, rngs=rngs)


def _convolution(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    xavier = nnx.initializers.glorot_uniform()
    return nnx.Linear(inputs, outputs, kernel_init=xavier, rngs=rngs)


def hidden_widths(source: int, target: int) -> list[int]:
    """Return the hidden widths between two modalities.

    Args:
      source: width of the input modality.
      target: width of the output modality.
    """
    widths = [target // 2] if target > source else [source // 2, source // 4, source // 4]
    return [max(1, width) for width in widths]


def ae(
    gaps: Gaps,
    *,
    epochs: int = 1000,
    lr: float = 0.01,
    batch: int = 32,
    l1: float = 1e-4,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Impute each absent row from the item's other modality.

    `l1` counts if the other modality is the narrower one.

    Raises:
      InputError: no other modality, no item that has both, or an option out of range.
    """
    # As torch's Adagrad: sums start at zero, and its epsilon is next to nothing.
    adagrad = functools.partial(optax.adagrad, initial_accumulator_value=0.0, eps=1e-20)
    return _impute("ae", gaps, None, adagrad, epochs, lr, batch, l1, seed)


def gae(
    gaps: Gaps,
    *,
    top_k: int = 20,
    epochs: int = 1000,
    lr: float = 1e-4,
    l1: float = 1e-4,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Impute like `ae`, with the modality of co-purchased items too.

    The input is the other modality of the item and of those bought with it.
    """
    neighbours = gaps.co_purchase(top_k)
    loops = sp.eye(neighbours.shape[0]) - sp.diags(neighbours.diagonal())  # all ones after this
    matrix = graph.from_scipy(graph.by_degree((neighbours + loops).tocsr()))
    return _impute("gae", gaps, matrix, optax.adam, epochs, lr, None, l1, seed)


def _impute(
    what: str,
    gaps: Gaps,
    neighbours: graph.Graph | None,
    optimizer: Callable[[float], optax.GradientTransformation],
    epochs: int,
    lr: float,
    batch: int | None,
    l1: float,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    if gaps.other is None or gaps.other_present is None:
        raise InputError(f"{what} imputes from the other modality; give --other=STORE")
    both = np.flatnonzero(gaps.present & gaps.other_present)
    if not len(both):
        raise InputError(f"{what} learns from items that have both modalities and there are none")
    if epochs < 1 or (batch is not None and batch < 1) or not lr > 0 or not l1 >= 0:
        raise InputError(f"{what} needs epochs and batch of at least 1, lr above 0 and l1 from 0")
    source, _, _ = scale(gaps.other, gaps.other_present)
    target, low, extent = scale(gaps.features, gaps.present)
    widths = [source.shape[1], *hidden_widths(source.shape[1], target.shape[1]), target.shape[1]]
    keys = nnx.Rngs(seed)
    definition, params = nnx.split(
        Autoencoder(widths, convolutions=neighbours is not None, rngs=keys)
    )

    @jax.jit
    def forward(params: Any, source: jax.Array, neighbours: graph.Graph | None) -> jax.Array:
        return jax.nn.sigmoid(nnx.merge(definition, params)(source, neighbours))

    params, _ = train(
        what,
        definition,
        params,
        optimizer(lr),
        jax.device_put((source, target, both, neighbours)),
        key=keys.params(),
        epochs=epochs,
        batch=min(batch or len(both), len(both)),
        l1=l1 * (target.shape[1] > source.shape[1]),
    )
    absent = ~gaps.present & gaps.other_present
    rows = np.zeros_like(gaps.features)
    inputs = source[absent] if neighbours is None else source
    outputs = np.asarray(forward(params, inputs, neighbours))
    rows[absent] = low + extent * (outputs if neighbours is None else outputs[absent])
    return rows, gaps.present | gaps.other_present


def scale(features: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, ...]:
    """Scale features [I, F] to [0, 1], absent rows to zero.

    Returns:
      The scaled features, and the low [F] and extent [F] to undo it.
    """
    low = features[present].min(0, initial=np.inf)
    extent = features[present].max(0, initial=-np.inf) - low
    scaled = (features - low[None]) / np.where(extent > 0, extent, 1)[None]
    return np.where(present[:, None], scaled, 0), low, extent


def train(
    what: str,
    definition: nnx.GraphDef,
    params: Any,
    optimizer: optax.GradientTransformation,
    data: tuple[jax.Array, jax.Array, jax.Array, graph.Graph | None],
    *,
    key: jax.Array,
    epochs: int,
    batch: int,
    l1: float,
) -> tuple[Any, list[float]]:
    """Train an autoencoder; an epoch is one compiled program.

    Args:
      data: inputs [I, F] and targets [I, G] in [0, 1], the items [P] to learn from, and the graph.
      batch: items per step, at most P.

    Returns:
      The trained parameters and the mean loss of each epoch.
    """

    def loss(params: Any, rows: jax.Array, weight: jax.Array, data: Any) -> jax.Array:
        source, target, _, neighbours = data
        model = nnx.merge(definition, params)
        logits = model(source[rows]) if neighbours is None else model(source, neighbours)[rows]
        entropy = optax.sigmoid_binary_cross_entropy(logits, target[rows]).mean(1)  # [B]
        return weight @ (entropy + l1 * jax.nn.sigmoid(logits).sum(1)) / weight.sum()

    @jax.jit
    def epoch(state: Any, key: jax.Array, data: Any) -> tuple[Any, jax.Array]:
        count = data[2].shape[0]
        steps = -(-count // batch)
        padding = (0, steps * batch - count)  # of the last batch; it has no weight
        order = jnp.pad(jax.random.permutation(key, data[2]), padding)
        weights = jnp.pad(jnp.ones(count), padding)

        def step(state: Any, at: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
            params, memory = state
            value, gradient = jax.value_and_grad(loss)(params, *at, data)
            update, memory = optimizer.update(gradient, memory, params)
            return (optax.apply_updates(params, update), memory), value * at[1].sum()

        batches = order.reshape(steps, batch), weights.reshape(steps, batch)
        state, values = jax.lax.scan(step, state, batches)
        return state, values.sum() / count

    state, losses = (params, optimizer.init(params)), []
    with Progress(what, epochs, unit="epoch") as progress:
        for number in range(epochs):
            state, value = epoch(state, jax.random.fold_in(key, number), data)
            losses.append(float(value))
            progress.add(1, f"loss {losses[-1]:.4f}")
    return state[0], losses
