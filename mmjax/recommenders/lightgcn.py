"""LightGCN: linear propagation of id embeddings over the user-item graph."""

from typing import Any

import jax
from flax import nnx

from mmjax.core.names import choice
from mmjax.ops import graph
from mmjax.recommenders import base, losses
from mmjax.recommenders.layers import initializers


class LightGCN(nnx.Module):
    """LightGCN: mean of linearly propagated id embeddings.

    He et al., SIGIR 2020: s = <e_u, e_i>, E = mean of G^l E_0 for l = 0..L, G = D^-1/2 A D^-1/2 of
    the user-item graph A.

    The loss is BPR plus a penalty on the batch's rows of E_0. Elliot draws both tables from
    N(0, 0.1^2), uses softplus and half squares, and ranks by sigma(s): `sigmoid`, which orders
    items as s does but ties all scores that float32 rounds to 1, from s = 17 on. MMRec draws the
    tables Xavier-uniform, adds `eps` = 1e-7 to the degrees and penalises Frobenius norms.
    """

    def __init__(
        self,
        catalog: base.Catalog,
        *,
        dim: int,
        layers: int,
        eps: float = 0.0,
        ranking_loss: str = "softplus",
        regulariser: str = "squares",
        init: str = "normal0.1",
        sigmoid: bool = False,
        rngs: nnx.Rngs,
    ):
        self.layers, self.sigmoid = layers, sigmoid
        self.ranking_loss = choice("ranking_loss", ranking_loss, losses.LOSSES)
        self.regulariser = choice("regulariser", regulariser, losses.PENALTIES)
        self.user = nnx.Param(initializers.init_table(init, rngs.params(), (catalog.n_users, dim)))
        self.item = nnx.Param(initializers.init_table(init, rngs.params(), (catalog.n_items, dim)))
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
        users, items = self.tables()
        user = users[batch["user"]]  # [B, D]
        margin = (user * (items[batch["pos"]] - items[batch["neg"]])).sum(-1)  # [B]
        ego = (
            self.user[...][batch["user"]],
            self.item[...][batch["pos"]],
            self.item[...][batch["neg"]],
        )
        return losses.bpr(margin, self.ranking_loss) + l_w * losses.penalty(ego, self.regulariser)

    def tables(self) -> tuple[jax.Array, jax.Array]:
        """Return the layer means of users [U, D] and items [I, D]."""
        adjacency = self.graph.get_value()
        users = user = self.user[...]
        items = item = self.item[...]
        for _ in range(self.layers):
            user, item = (
                graph.propagate(adjacency, item),
                graph.propagate(adjacency.flip(), user),
            )
            users, items = users + user, items + item
        return users / (self.layers + 1), items / (self.layers + 1)

    def scores(self, tables: tuple[jax.Array, jax.Array], batch: dict[str, jax.Array]) -> jax.Array:
        scores = tables[0][batch["user"]] @ tables[1].T  # [B, I]
        return jax.nn.sigmoid(scores) if self.sigmoid else scores
