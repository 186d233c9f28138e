"""LightGCN's propagation over user-item graphs, and the graphs that models walk."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.ops import graph, knn, weighted_graph
from mmjax.recommenders import base


def propagations(adjacency: graph.Graph, user: jax.Array, item: jax.Array, layers: int):
    """Yields users and items after each of L steps over the user-item graph, LightGCN's."""
    for _ in range(layers):
        user, item = graph.propagate(adjacency, item), graph.propagate(adjacency.flip(), user)
        yield user, item


def light_gcn(adjacency: graph.Graph, user: jax.Array, item: jax.Array, layers: int) -> base.Tables:
    """The mean of the states 0..L of users and items."""
    return light_gcn_over([(adjacency, adjacency.flip())] * layers, user, item)


def light_gcn_over(
    graphs: Sequence[tuple[graph.Graph, graph.Graph]], user: jax.Array, item: jax.Array
) -> base.Tables:
    """`light_gcn` with graphs of its own in each layer: one [U, I] that users read items by, and
    one [I, U] that items read users by."""
    users, items = user, item
    for to_users, to_items in graphs:
        user, item = graph.propagate(to_users, item), graph.propagate(to_items, user)
        users, items = users + user, items + item
    return users / (len(graphs) + 1), items / (len(graphs) + 1)


def normalised(pattern: weighted_graph.Pattern, eps: float, dtype: np.dtype) -> graph.Graph:
    """D^-1/2 A D^-1/2 with degrees + eps, of all edges of a pattern."""
    return weighted_graph.weighted(pattern, weighted_graph.symmetric(pattern, eps, dtype))


def pruned(
    key: jax.Array, whole: weighted_graph.Pattern, count: int, eps: float, dtype: np.dtype
) -> graph.Graph:
    """`count` edges, drawn without replacement in proportion to their weight in the normalised
    graph, normalised again; FREEDOM's."""
    if count == len(whole.forward.rows):
        return normalised(whole, eps, dtype)
    odds = jnp.log(weighted_graph.symmetric(whole, eps, dtype))
    return normalised(weighted_graph.keep(whole, weighted_graph.draw(key, odds, count)), eps, dtype)


def similar(
    catalog: base.Catalog, shares: Mapping[str, float], top_k: int, eps: float, dtype: np.dtype
) -> graph.Graph:
    """sum_m c_m S_m with c the shares; S_m joins each item with its `top_k` most similar in one
    modality, itself among them, every edge 1/k."""
    graphs = [
        share * knn.weigh(catalog.neighbours(name, top_k), "uniform", eps=eps)
        for name, share in shares.items()
    ]
    return graph.from_scipy(sum(graphs), dtype)


def average(values: Sequence[jax.Array]) -> jax.Array:
    return sum(values) / len(values)
