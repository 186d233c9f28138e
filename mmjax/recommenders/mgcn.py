"""MGCN: content purified and fused by behaviour, spread over item graphs."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from mmjax.core.names import choice
from mmjax.ops import graph, knn
from mmjax.recommenders import base, losses
from mmjax.recommenders.layers import dense, initializers, projection, propagation


class MGCN(nnx.Module):
    """MGCN: multi-view model with content purified by behaviour.

    Yu et al., MM 2023: s = <c_u + t_u, c_i + t_i>, c LightGCN's states, t the modalities' side.

    Each modality gives items v_m = S_m^L (I * sigma(gate_m(x_m))), x_m = F_m W_m + b with F_m
    trained as well, I the id embeddings and L = `item_layers`, and users the v_m of their items.
    Over both,

        common = sum_m a_m v_m,   a = softmax_m(q . tanh(W_q v_m + b_q)),
        t = (sum_m sigma(prefer_m(c)) * (v_m - common) + common) / (M + 1).

    The loss is BPR (softplus) + l_w/2 sum ||.||^2 / B of the final rows of the batch + cl_weight
    [NCE(t_i, c_i) + NCE(t_u, c_u)], in-batch. S_m are the features' `top_k` cosines with the row
    sums on both sides, and users sum items by D^-1/2 R D^-1/2: MMRec, the defaults. Elliot's fork
    has `item_graph="uniform"`, every edge 1/k, and `user_view="none"`, sums over a user's items.
    Two slips of that fork are not options: the gate multiplies one row of v_m - common instead of
    all, and gradients are never reset, so that each step follows the sum of all before it.

    Only the rows of the batch are fused. An item without a modality has no edges in its S_m, and so
    a v_m of zeros; with one modality t is v_1 / 2.
    """

    def __init__(
        self,
        catalog: base.Catalog,
        *,
        dim: int,
        layers: int = 2,
        item_layers: int = 1,
        top_k: int = 10,
        item_graph: str = "cosine",
        user_view: str = "sym",
        trainable_features: bool = True,
        rngs: nnx.Rngs,
    ):
        choice("item_graph", item_graph, ("cosine", "uniform"))
        choice("user_view", user_view, ("sym", "none"))
        self.layers, self.item_layers = layers, item_layers

        def table(count: int) -> jax.Array:
            return initializers.init_table("xavier_uniform", rngs.params(), (count, dim))

        self.user, self.item = nnx.Param(table(catalog.n_users)), nnx.Param(table(catalog.n_items))
        names, dtype = catalog.modalities(), self.user[...].dtype

        def gates() -> nnx.List:
            return nnx.List([dense.linear(dim, dim, rngs=rngs) for _ in names])

        self.contents = projection.contents(catalog, dim, trainable=trainable_features, rngs=rngs)
        self.gates, self.prefers = gates(), gates()
        self.attention = dense.Attention(dim, rngs=rngs)
        similar = [
            knn.weigh(catalog.neighbours(name, top_k), item_graph, eps=1e-7) for name in names
        ]
        self.similar = nnx.List([base.Frozen(graph.from_scipy(s, dtype)) for s in similar])
        train = (catalog.train_user, catalog.train_item, catalog.shape)
        self.graph = base.Frozen(graph.bipartite(*train, dtype=dtype))
        # None: users sum items over the same graph.
        bare = graph.bipartite(*train, norm="none", dtype=dtype) if user_view == "none" else None
        self.view = None if bare is None else base.Frozen(bare)

    def loss(
        self,
        batch: dict[str, jax.Array],
        epoch: dict,
        *,
        l_w: float,
        cl_weight: float = 0.01,
        temperature: float = 0.2,
        key: jax.Array,
    ) -> jax.Array:
        tables, views = self._states()
        id_states = losses.rows(tables, batch)  # of users, positives, negatives: [B, D] each
        rows = zip(*(losses.rows(view, batch) for view in views), strict=True)
        sides = [self._side(view, c) for view, c in zip(rows, id_states, strict=True)]
        return losses.with_sides(
            id_states, sides, l_w=l_w, cl_weight=cl_weight, temperature=temperature
        )

    def _states(self) -> tuple[base.Tables, list[base.Tables]]:
        """Return c and the v_m of each modality.

        Each is a pair: users [U, D] and items [I, D].
        """
        user, item = self.user[...], self.item[...]
        id_states = propagation.light_gcn(self.graph.get_value(), user, item, self.layers)
        views, by_user = [], (self.graph if self.view is None else self.view).get_value()
        for content, gate, similar in zip(self.contents, self.gates, self.similar, strict=True):
            items = item * jax.nn.sigmoid(gate(content()))
            for _ in range(self.item_layers):
                items = graph.propagate(similar.get_value(), items)
            views.append((graph.propagate(by_user, items), items))
        return id_states, views

    def _side(self, views: Sequence[jax.Array], own: jax.Array) -> jax.Array:
        """Return t of some rows [N, D].

        `views` are their v_m, `own` their c.
        """
        shares = self.attention(views)
        common: Any = sum(share * view for share, view in zip(shares, views, strict=True))
        specific: Any = sum(
            jax.nn.sigmoid(prefer(own)) * (view - common)
            for prefer, view in zip(self.prefers, views, strict=True)
        )
        return (specific + common) / (len(self.prefers) + 1)

    def tables(self) -> base.Tables:
        """Return users [U, D] and items [I, D]."""
        id_states, views = self._states()
        pairs = zip(id_states, zip(*views, strict=True), strict=True)
        users, items = (c + self._side(view, c) for c, view in pairs)
        return users, items

    def scores(self, tables: base.Tables, batch: dict[str, jax.Array]) -> jax.Array:
        return tables[0][batch["user"]] @ tables[1].T  # [B, I]
