"""Learned sparse item graphs and the looped propagation of LATTICE, MICRO."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from flax import nnx

from mmjax.ops import graph, knn, weighted_graph
from mmjax.ops.normalize import unit
from mmjax.recommenders import base
from mmjax.recommenders.layers import projection


class Kept(NamedTuple):
    """Learned item graph [I, I] as built for one epoch.

    Each row has K edges, K' of them learned.
    """

    there: jax.Array  # [I, K'] bool: False where an item has fewer neighbours
    pattern: weighted_graph.Pattern  # learned edges first, then frozen ones
    graph: graph.Graph  # with detached weights


class ItemGraph(nnx.Module):
    """Sparse item graph with a learned and a frozen part.

        S = (1 - s) n(sum_m a_m S_m) + s sum_m a_m n(C_m),  s = `skip`

    C_m holds the `top_k` largest cosines of the features F_m in each row, the item itself among
    them, and never changes; S_m holds those of x_m = F_m W_m + b_m. a = softmax(w), w trained; one
    modality has a = 1. n(S) = D^-1/2 S D^-1/2, D being S's row sums on both sides; an item whose
    row sum is not positive has no edges. `self_one` sets the diagonal of n's argument to 1
    (Elliot).

    `build` chooses the edges and computes their weights, detached. `propagate` lets the gradient
    flow through the weights (to w, F_m, W_m, b_m) where its argument `first` is true. Edges of
    several modalities are not merged: a pair may occur in a row more than once.
    """

    def __init__(
        self,
        catalog: base.Catalog,
        names: Sequence[str],
        dim: int,
        *,
        top_k: int,
        skip: float,
        self_one: bool,
        trainable: bool,
        rngs: nnx.Rngs,
    ):
        self.top_k, self.skip, self.self_one = top_k, skip, self_one
        neighbours = [catalog.neighbours(name, top_k) for name in names]
        with jax.ensure_compile_time_eval():
            values = [np.where(np.isfinite(near.values), near.values, 0) for near in neighbours]
            frozen = [
                _normalised(jnp.asarray(near.columns), jnp.asarray(cosines), self_one)
                for near, cosines in zip(neighbours, values, strict=True)
            ]
        self.frozen = base.Frozen(frozen)  # of each modality: columns and weights, [I, k]
        content = functools.partial(
            projection.Content, catalog, dim=dim, trainable=trainable, rngs=rngs
        )
        self.contents = nnx.List([content(modality=name) for name in names])
        count = len(names)
        self.importance = nnx.Param(jnp.full(count, 1 / count)) if count > 1 else None

    def build(self) -> Kept:
        """Build the graph of the current parameters."""
        x = [content() for content in self.contents]
        neighbours = [knn.nearest(rows, self.top_k) for rows in x]
        present = jnp.isfinite(jnp.concatenate([near.values for near in neighbours], axis=1))
        learned = jnp.concatenate([near.columns for near in neighbours], axis=1)
        columns, weights = self._edges(x, learned, present)
        pattern = weighted_graph.of_neighbours(columns, columns.shape[0])
        weights = jax.lax.stop_gradient(weights).reshape(-1)
        return Kept(present, pattern, weighted_graph.weighted(pattern, weights))

    def _edges(
        self, x: list[jax.Array], learned: jax.Array, there: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return the columns and weights of all edges, [I, K] each.

        `learned` [I, K'] are the columns of the learned edges; `there` says which of them exist.
        """
        frozen = self.frozen.get_value()
        shares = [1.0] if self.importance is None else list(jax.nn.softmax(self.importance[...]))
        cosines = [
            share * knn.cosines(rows, columns)
            for share, rows, columns in zip(
                shares, x, jnp.split(learned, len(x), axis=1), strict=True
            )
        ]
        values = jnp.where(there, jnp.concatenate(cosines, axis=1), 0)
        first, normalised = _normalised(learned, values, self.self_one)
        weights = [(1 - self.skip) * normalised]
        weights += [self.skip * s * w for s, (_, w) in zip(shares, frozen, strict=True)]
        columns = [first] + [c for c, _ in frozen]
        return jnp.concatenate(columns, axis=1), jnp.concatenate(weights, axis=1)

    def weights(self, kept: Kept) -> jax.Array:
        """Return the weights [E] of the kept edges, differentiable."""
        learned = kept.pattern.forward.columns.reshape(kept.there.shape[0], -1)
        learned = learned[:, : kept.there.shape[1]]
        x = [content() for content in self.contents]
        return self._edges(x, learned, kept.there)[1].reshape(-1)

    def propagate(
        self, kept: Kept, first: jax.Array | bool, x: jax.Array, layers: int
    ) -> jax.Array:
        """Return S^layers x, [I, D].

        Where `first` is true, the gradient of the weights flows to this graph's parameters, whose
        values must then be those that `kept` was built from. Elsewhere they get zero gradients.
        """
        graphdef, *states = nnx.split(self, nnx.Param, ...)
        params, frozen = states
        return _propagate((graphdef, layers), nnx.to_pure_dict(params), frozen, kept, first, x)


def _normalised(
    columns: jax.Array, values: jax.Array, self_one: bool
) -> tuple[jax.Array, jax.Array]:
    """Return the columns and weights of n(S), [I, K] each.

    S has the given columns and values, [I, K] each. `self_one` adds an edge to each row.
    """
    if self_one:
        diagonal = jnp.arange(columns.shape[0], dtype=columns.dtype)[:, None]
        ones = (values != 0).any(axis=1, keepdims=True).astype(values.dtype)
        values = jnp.concatenate([jnp.where(columns == diagonal, 0, values), ones], axis=1)
        columns = jnp.concatenate([columns, diagonal], axis=1)
    sums = values.sum(axis=1)
    scale = jnp.where(sums > 0, jax.lax.rsqrt(jnp.where(sums > 0, sums, 1)), 0)
    return columns, scale[:, None] * values * scale[columns]


# Forward: the kept weights are valid in the first step too, so none are computed. Backward: only
# the first step projects features and computes cosines. A plain `cond` would pass the residuals of
# its branches, features included, from the forward to the backward pass of every step.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _propagate(
    static: tuple[nnx.GraphDef, int],
    params: Any,
    frozen: Any,
    kept: Kept,
    first: jax.Array | bool,
    x: jax.Array,
) -> jax.Array:
    for _ in range(static[1]):
        x = graph.propagate(kept.graph, x)
    return x


def _forward(static: tuple, *operands: Any) -> tuple:
    return _propagate(static, *operands), operands


def _backward(static: tuple[nnx.GraphDef, int], operands: tuple, cotangent: jax.Array) -> tuple:
    graphdef, layers = static
    params, frozen, kept, first, x = operands

    def learned(params: Any, x: jax.Array) -> jax.Array:
        weights = nnx.merge(graphdef, nnx.State(params), frozen).weights(kept)
        for _ in range(layers):
            x = weighted_graph.aggregate(kept.pattern, weights, x)
        return x

    def through() -> tuple:
        return jax.vjp(learned, params, x)[1](cotangent)

    def past() -> tuple:
        of_x = cotangent
        for _ in range(layers):
            of_x = graph.propagate(kept.graph.flip(), of_x)
        return jax.tree.map(jnp.zeros_like, params), of_x

    of_params, of_x = jax.lax.cond(first, through, past)
    return of_params, None, None, None, of_x


_propagate.defvjp(_forward, _backward)


def looped(catalog: base.Catalog, norm: str, dtype: np.dtype) -> graph.Graph:
    """Build one graph [U + I, U + I] with self-loops.

    Users come first, then items. `left` gives D^-1 (A + I); `both` D^-1 (A + I) D^-1, which is
    Elliot's.
    """
    users_items = graph.incidence(catalog.train_user, catalog.train_item, catalog.shape)
    adjacency = sp.bmat([[None, users_items], [users_items.T, None]])
    adjacency = adjacency + sp.eye(adjacency.shape[0])
    matrix = graph.by_degree(adjacency, norm="left")
    if norm == "both":
        matrix = matrix @ sp.diags(1 / np.asarray(adjacency.sum(axis=1)).ravel())
    return graph.from_scipy(matrix, dtype)


def walk(
    adjacency: graph.Graph, user: jax.Array, item: jax.Array, layers: int, normalize: bool = False
) -> base.Tables:
    """Return the mean of the states 0..L over a `looped` graph.

    The result is users [U, D] and items [I, D]. `normalize` makes the rows of states 1..L unit
    vectors.
    """
    total = state = jnp.concatenate([user, item])
    for _ in range(layers):
        state = graph.propagate(adjacency, state)
        state = unit(state) if normalize else state
        total = total + state
    users, items = jnp.split(total / (layers + 1), [user.shape[0]])
    return users, items
