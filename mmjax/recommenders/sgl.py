"""SGL: LightGCN with a contrast of two augmented views of the graph."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.core.errors import InputError
from mmjax.core.names import choice
from mmjax.ops import contrastive, graph, weighted_graph
from mmjax.recommenders import base, losses
from mmjax.recommenders.layers import initializers, propagation

VIEWS = ("edges", "nodes", "layers")


class SGL(nnx.Module):
    """SGL: LightGCN with a contrast between two graph views.

    Wu et al., SIGIR 2021: s = <e_u, e_i>, e the mean of LightGCN's states 0..L. The loss is

        sum over the batch of  -log sigmoid(s_ui - s_uj) + l_w (|x_u|^2 + |x_i|^2 + |x_j|^2) / 2
                               + cl_weight (C(u) + C(i)),
        C(u) = -log [exp(cos(e'_u, e''_u) / t) / sum over all users v of exp(cos(e'_u, e''_v) / t)]

    with x the tables before propagation, t the temperature, and C(i) the same over all items. e'
    and e'' are states on two views of the graph, drawn anew each epoch, without round(drop E) of
    its edges (`edges`, the authors' ED), without round(drop U) users and round(drop I) items and
    their edges (`nodes`, ND), or without other edges in each layer (`layers`, RW). The rest is
    normalised again.

    Elliot and the authors' code agree. It is a sum, not a mean, so the loss grows with B, but for
    Adam that changes nothing. SELFRec contrasts the batch's nodes among themselves instead.
    """

    def __init__(
        self,
        catalog: base.Catalog,
        *,
        dim: int,
        layers: int = 3,
        views: str = "edges",
        drop: float = 0.1,
        init: str = "xavier_uniform",
        rngs: nnx.Rngs,
    ):
        if not 0 <= drop < 1:
            raise InputError(f"drop={drop} must be at least 0 and less than 1")
        self.layers, self.drop = layers, drop
        self.views = choice("views", views, VIEWS)

        def table(count: int) -> jax.Array:
            return initializers.init_table(init, rngs.params(), (count, dim))

        self.user, self.item = nnx.Param(table(catalog.n_users)), nnx.Param(table(catalog.n_items))
        pattern = weighted_graph.pattern(catalog.train_user, catalog.train_item, catalog.shape)
        self.whole = base.Frozen(pattern)

    def epoch(self, key: jax.Array) -> dict[str, Any]:
        """Return the whole graph and two views of it.

        A view is a list of one graph, or of one for each layer (`views="layers"`).
        """
        pattern = self.whole.get_value()
        draw = self._without_nodes if self.views == "nodes" else self._without_edges
        count = self.layers if self.views == "layers" else 1
        keys = jax.random.split(key, (2, count))
        views = [[draw(pattern, k) for k in of_view] for of_view in keys]
        return {"whole": self._normalised(pattern), "views": views}

    def _without_edges(self, whole: weighted_graph.Pattern, key: jax.Array) -> graph.Graph:
        total = len(whole.forward.rows)
        odds = jnp.zeros(total, self.user[...].dtype)
        return self._normalised(
            weighted_graph.keep(
                whole, weighted_graph.draw(key, odds, total - round(self.drop * total))
            )
        )

    def _without_nodes(self, whole: weighted_graph.Pattern, key: jax.Array) -> graph.Graph:
        """Drop nodes with their edges and normalise the rest again.

        Dropped edges stay with a weight of zero, since their number depends on the key.
        """
        dtype = self.user[...].dtype
        users, items = (
            jnp.ones(n, dtype).at[jax.random.permutation(k, n)[: round(self.drop * n)]].set(0)
            for k, n in zip(jax.random.split(key), whole.shape, strict=True)
        )
        forward, transpose = whole
        kept = users[forward.rows] * items[forward.columns]  # [E] 1 or 0
        sums = [
            jax.ops.segment_sum(values, side.rows, count, indices_are_sorted=True)
            for values, side, count in zip(
                (kept, kept[transpose.order]), whole, whole.shape, strict=True
            )
        ]
        of_user, of_item = (jax.lax.rsqrt(jnp.maximum(degree, 1)) for degree in sums)
        return weighted_graph.weighted(
            whole, kept * of_user[forward.rows] * of_item[forward.columns]
        )

    def _normalised(self, pattern: weighted_graph.Pattern) -> graph.Graph:
        return propagation.normalised(pattern, 0.0, self.user[...].dtype)

    def loss(
        self,
        batch: dict[str, jax.Array],
        epoch: dict[str, Any],
        *,
        l_w: float,
        cl_weight: float = 0.1,
        temperature: float = 0.2,
        key: Any,
    ) -> jax.Array:
        ego = self.user[...], self.item[...]
        size = batch["user"].shape[0]
        tables = propagation.light_gcn(epoch["whole"], *ego, self.layers)
        mean = losses.bpr(losses.margin(tables, batch), "softplus")
        mean += l_w * losses.penalty(losses.rows(ego, batch), "squares")
        states = [self._states(view) for view in epoch["views"]]
        for first, second, nodes in zip(*states, (batch["user"], batch["pos"]), strict=True):
            weights = jnp.full(size, cl_weight / size)
            mean += contrastive.against_all(first, second, nodes, temperature, weights)
        return size * mean

    def _states(self, view: list[graph.Graph]) -> base.Tables:
        graphs = view if self.views == "layers" else view * self.layers
        pairs = [(adjacency, adjacency.flip()) for adjacency in graphs]
        return propagation.light_gcn_over(pairs, self.user[...], self.item[...])

    def tables(self) -> base.Tables:
        """Return users [U, D] and items [I, D] on the whole graph."""
        adjacency = self._normalised(self.whole.get_value())
        return propagation.light_gcn(adjacency, self.user[...], self.item[...], self.layers)

    def scores(self, tables: base.Tables, batch: dict[str, jax.Array]) -> jax.Array:
        return tables[0][batch["user"]] @ tables[1].T  # [B, I]
