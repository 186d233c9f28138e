"""LightGCN's propagation, and the graphs that models propagate over."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.ops import graph, knn, weighted_graph
from mmjax.recommenders import base


def propagations(adjacency: graph.Graph, user: jax.Array, item: jax.Array, layers: int):
    """Yield users and items after each of L propagation steps.

    A step is LightGCN's, over the user-item graph [U, I].
    """
    for _ in range(layers):
        user, item = graph.propagate(adjacency, item), graph.propagate(adjacency.flip(), user)
        yield user, item


def light_gcn(adjacency: graph.Graph, user: jax.Array, item: jax.Array, layers: int) -> base.Tables:
    """Return the mean of the states 0..L of users and items."""
    return light_gcn_over([(adjacency, adjacency.flip())] * layers, user, item)


def light_gcn_over(
    graphs: Sequence[tuple[graph.Graph, graph.Graph]], user: jax.Array, item: jax.Array
) -> base.Tables:
    """Propagate as `light_gcn`, with separate graphs in each layer.

    In a layer users aggregate items over a graph [U, I], and items aggregate users over a graph
    [I, U].
    """
    users, items = user, item
    for to_users, to_items in graphs:
        user, item = graph.propagate(to_users, item), graph.propagate(to_items, user)
        users, items = users + user, items + item
    return users / (len(graphs) + 1), items / (len(graphs) + 1)


def normalised(pattern: weighted_graph.Pattern, eps: float, dtype: np.dtype) -> graph.Graph:
    """Return D^-1/2 A D^-1/2 of all edges of a pattern.

    D are the degrees + eps.
    """
    return weighted_graph.weighted(pattern, weighted_graph.symmetric(pattern, eps, dtype))


def pruned(
    key: jax.Array, whole: weighted_graph.Pattern, count: int, eps: float, dtype: np.dtype
) -> graph.Graph:
    """Draw `count` edges and normalise them again, as in FREEDOM.

    The edges are drawn without replacement, in proportion to their weight in the normalised graph.
    """
    if count == len(whole.forward.rows):
        return normalised(whole, eps, dtype)
    odds = jnp.log(weighted_graph.symmetric(whole, eps, dtype))
    return normalised(weighted_graph.keep(whole, weighted_graph.draw(key, odds, count)), eps, dtype)


def similar(
    catalog: base.Catalog, shares: Mapping[str, float], top_k: int, eps: float, dtype: np.dtype
) -> graph.Graph:
    """Build the frozen item graph sum_m c_m S_m, c the shares.

    S_m joins each item with its `top_k` most similar items in one modality, itself among them,
    every edge 1 / (k + eps).
    """
    graphs = [
        share * knn.weigh(catalog.neighbours(name, top_k), "uniform", eps=eps)
        for name, share in shares.items()
    ]
    return graph.from_scipy(sum(graphs), dtype)


def average(values: Sequence[jax.Array]) -> jax.Array:
    total: Any = sum(values)
    return total / len(values)
