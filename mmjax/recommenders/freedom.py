"""FREEDOM: a frozen item graph and a user-item graph pruned each epoch."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.core.errors import InputError
from mmjax.ops import graph, weighted_graph
from mmjax.recommenders import base, losses
from mmjax.recommenders.layers import initializers, projection, propagation


class FREEDOM(nnx.Module):
    """FREEDOM: LightGCN with a frozen item graph and pruned edges.

    Zhou and Shen, MM 2023: s = <e_u, e_i + h_i>, e LightGCN's states, h = S^L e_i(0), L =
    `item_layers`, e_i(0) the items' id embeddings.

    S = sum_m c_m S_m, and S_m joins each item with its `top_k` most similar by the cosine of the
    features, itself among them, every edge 1/k. Each epoch trains on floor((1 - drop) E) of the
    edges between users and items, drawn without replacement in proportion to 1/sqrt(d_u d_i) and
    normalised again; evaluation uses all. The loss is

        BPR(e_u, e_i + h_i) + l_w sum_m BPR(e_u, x_m,i),   x_m = F_m W_m + b, F_m trained as well,

    so that l_w weighs the content, not a penalty. c_m is given by `weights`, name by name (the
    papers: .1 for images); the rest is shared by the other modalities. One modality has c = 1;
    Elliot's code leaves it at .1 (`single_weight`). An item without a modality has no edges in its
    S_m and no part in its BPR.
    """

    def __init__(
        self,
        catalog: base.Catalog,
        *,
        dim: int,
        layers: int = 2,
        item_layers: int = 1,
        top_k: int = 10,
        weights: Mapping[str, float] | None = None,
        single_weight: float = 1.0,
        drop: float = 0.8,
        trainable_features: bool = True,
        eps: float = 1e-7,
        rngs: nnx.Rngs,
    ):
        if not 0 <= drop < 1:
            raise InputError(f"drop={drop} must be at least 0 and less than 1")
        self.layers, self.item_layers, self.eps = layers, item_layers, eps

        def table(count: int) -> jax.Array:
            return initializers.init_table("xavier_uniform", rngs.params(), (count, dim))

        self.user, self.item = nnx.Param(table(catalog.n_users)), nnx.Param(table(catalog.n_items))
        self.contents = projection.contents(catalog, dim, trainable=trainable_features, rngs=rngs)
        shares = projection.shares(catalog.modalities(), weights or {}, single_weight)
        dtype = self.user[...].dtype
        self.similar = base.Frozen(propagation.similar(catalog, shares, top_k, eps, dtype))
        pattern = weighted_graph.pattern(catalog.train_user, catalog.train_item, catalog.shape)
        self.whole = base.Frozen(pattern)
        self.kept = int((1 - drop) * len(pattern.forward.rows))

    def epoch(self, key: jax.Array) -> graph.Graph:
        """Draw the pruned user-item graph."""
        dtype = self.user[...].dtype
        return propagation.pruned(key, self.whole.get_value(), self.kept, self.eps, dtype)

    def _normalised(self, pattern: weighted_graph.Pattern) -> graph.Graph:
        return propagation.normalised(pattern, self.eps, self.user[...].dtype)

    def loss(
        self, batch: dict[str, jax.Array], epoch: graph.Graph, *, l_w: float, key: Any
    ) -> jax.Array:
        tables = self._tables(epoch)
        user, both = tables[0][batch["user"]], jnp.concatenate([batch["pos"], batch["neg"]])
        total = jax.nn.softplus(-losses.margin(tables, batch)).mean()
        for content in self.contents:
            pos, neg = jnp.split(content(both), 2)  # [B, D]
            margin = (user * (pos - neg)).sum(axis=-1)
            present = content.weight_of(batch["pos"]) * content.weight_of(batch["neg"])
            total += l_w * (present * jax.nn.softplus(-margin)).mean()
        return total

    def _tables(self, adjacency: graph.Graph) -> base.Tables:
        users, items = propagation.light_gcn(adjacency, self.user[...], self.item[...], self.layers)
        similar = self.item[...]
        for _ in range(self.item_layers):
            similar = graph.propagate(self.similar.get_value(), similar)
        return users, items + similar

    def tables(self) -> base.Tables:
        """Return users [U, D] and items [I, D] on the whole graph."""
        return self._tables(self._normalised(self.whole.get_value()))

    def scores(self, tables: base.Tables, batch: dict[str, jax.Array]) -> jax.Array:
        return tables[0][batch["user"]] @ tables[1].T  # [B, I]
