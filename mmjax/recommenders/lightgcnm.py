"""LightGCN-M: LightGCN with content as the items' embeddings or beside them."""

from typing import Any

import jax
from flax import nnx

from mmjax.core.names import choice
from mmjax.ops import graph
from mmjax.ops.normalize import unit
from mmjax.recommenders import base, losses
from mmjax.recommenders.layers import initializers, projection, propagation

PLACES = ("items", "head")
AGGREGATIONS = ("concat", "mean", "sum")


class LightGCNM(nnx.Module):
    """LightGCN-M: LightGCN with item content, of the Elliot forks.

    s = <e_u, e_i>, e the mean of LightGCN's states 0..L.

    `content="items"` (arXiv 2309.05273): items have no table of their own but start from

        concat  n(F W + b), F all modalities side by side
        mean    the mean over the modalities of n(F_m W_m + b_m); `sum` their sum

    where n makes rows unit vectors and the features are trained as well. The loss is BPR plus l_w
    times half the squares over B of the batch's rows: users' before propagation, items' after.
    Elliot ranks by sigma(s) here, see LightGCN's `sigmoid`.

    `content="head"` (the code of arXiv 2408.11767): LightGCN with an item table, and VBPR's space
    beside it, s = <e_u, e_i> + <t_u, n(F_i W + b)>, F frozen. The penalty takes half the squares of
    e, t and n(.). Its id tables are drawn from N(0, 0.1^2) (`init="normal0.1"`), t Xavier-uniform.
    """

    def __init__(
        self,
        catalog: base.Catalog,
        *,
        dim: int,
        layers: int = 3,
        content: str = "items",
        aggregation: str = "concat",
        trainable_features: bool = True,
        eps: float = 0.0,
        init: str = "xavier_uniform",
        sigmoid: bool = False,
        rngs: nnx.Rngs,
    ):
        self.layers, self.sigmoid = layers, sigmoid
        self.place = choice("content", content, PLACES)
        self.aggregation = choice("aggregation", aggregation, AGGREGATIONS)

        def table(count: int) -> jax.Array:
            return initializers.init_table(init, rngs.params(), (count, dim))

        self.user = nnx.Param(table(catalog.n_users))
        if content == "head":
            self.item = nnx.Param(table(catalog.n_items))
            self.head = projection.Head(catalog, dim, rngs=rngs)
        elif aggregation == "concat":
            joined = projection.joined(catalog, dim, trainable=trainable_features, rngs=rngs)
            self.contents = nnx.List([joined])
        else:
            self.contents = projection.contents(
                catalog, dim, trainable=trainable_features, rngs=rngs
            )
        self.graph = base.Frozen(
            graph.bipartite(
                catalog.train_user,
                catalog.train_item,
                catalog.shape,
                eps=eps,
                dtype=self.user[...].dtype,
            )
        )

    def loss(self, batch: dict[str, jax.Array], epoch: Any, *, l_w: float, key: Any) -> jax.Array:
        tables = self.tables()
        user, pos, neg = losses.rows(tables, batch)
        if self.place == "items":
            user = self.user[...][batch["user"]]
        reg = losses.penalty((user, pos, neg), "squares")
        return losses.bpr(losses.margin(tables, batch), "softplus") + l_w * reg

    def tables(self) -> base.Tables:
        """Return users [U, D] and items [I, D].

        With `content="head"` both are 2D wide.
        """
        item = self.item[...] if self.place == "head" else self._contents()
        tables = propagation.light_gcn(self.graph.get_value(), self.user[...], item, self.layers)
        return self.head.beside(tables) if self.place == "head" else tables

    def _contents(self) -> jax.Array:
        rows = [unit(content()) for content in self.contents]
        total: Any = sum(rows) if self.aggregation == "sum" else propagation.average(rows)
        return total

    def scores(self, tables: base.Tables, batch: dict[str, jax.Array]) -> jax.Array:
        scores = tables[0][batch["user"]] @ tables[1].T  # [B, I]
        return jax.nn.sigmoid(scores) if self.sigmoid else scores
