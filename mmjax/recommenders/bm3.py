"""BM3: bootstrapped representations, predicted from one another without negatives."""

from typing import Any

import jax
from flax import nnx

from mmjax.ops import draws, graph
from mmjax.ops.normalize import cosine
from mmjax.recommenders import base, losses
from mmjax.recommenders.layers import dense, initializers, projection, propagation


class BM3(nnx.Module):
    """BM3: bootstrapped multimodal model, trained without negatives.

    Zhou et al., WWW 2023: s = <P(e_u), P(e_i)>, P(x) = W x + b, e_u LightGCN's state, e_i
    LightGCN's state plus the item's id embedding.

    For a pair (u, i), with y~ = a copy of y that gets no gradient and has entries dropped, and
    C(x, y) = 1 - cos(P(x), y~), averaged over the batch, the loss is

        C(e_u, e_i) + C(e_i, e_u) + l_w (|E_U|_F + |E_I|_F) / I
            + cl_weight sum_m [C(x_m,i, e_i) + C(x_m,i, x_m,i)],   x_m = F_m W_m + b_m,

    F_m trained as well, norms over all users and items. `dropout` is always on in training (MMRec,
    Elliot: one mask for a whole table; here one for the rows of the batch, so that an item that
    occurs twice in it has two). An item without a modality has no part in its two terms.

    Weights start Xavier-normal and biases as torch draws a Linear's, in both toolboxes. Biases
    matter here: from zeros the best epoch came three to four times as late where
    scripts/experiments/end_to_end.py trains.
    """

    def __init__(
        self,
        catalog: base.Catalog,
        *,
        dim: int,
        layers: int = 2,
        trainable_features: bool = True,
        eps: float = 1e-7,
        rngs: nnx.Rngs,
    ):
        self.layers = layers

        def table(count: int) -> jax.Array:
            return initializers.init_table("xavier_uniform", rngs.params(), (count, dim))

        self.user, self.item = nnx.Param(table(catalog.n_users)), nnx.Param(table(catalog.n_items))
        self.contents = projection.contents(
            catalog, dim, trainable=trainable_features, init="xavier_normal", rngs=rngs
        )
        self.predictor = dense.linear(dim, dim, init="xavier_normal", rngs=rngs)
        train = (catalog.train_user, catalog.train_item, catalog.shape)
        dtype = self.user[...].dtype
        self.graph = base.Frozen(graph.bipartite(*train, eps=eps, dtype=dtype))

    def loss(
        self,
        batch: dict[str, jax.Array],
        epoch: Any,
        *,
        l_w: float,
        cl_weight: float = 2.0,
        dropout: float = 0.3,
        key: jax.Array,
    ) -> jax.Array:
        keys = iter(jax.random.split(key, 2 + len(self.contents)))

        def target(x: jax.Array) -> jax.Array:
            return jax.lax.stop_gradient(draws.dropout(next(keys), x, dropout))

        def away(online: jax.Array, target: jax.Array) -> jax.Array:
            return 1 - cosine(online, target)

        users, items = self._states()
        user, item = users[batch["user"]], items[batch["pos"]]  # [B, D]
        for_user, for_item = target(user), target(item)
        total = away(self.predictor(user), for_item) + away(self.predictor(item), for_user)
        for content in self.contents:
            x = content(batch["pos"])
            online = self.predictor(x)
            both = away(online, for_item) + away(online, target(x))
            total += cl_weight * content.weight_of(batch["pos"]) * both
        return total.mean() + l_w * losses.penalty((users, items), "norms")

    def _states(self) -> base.Tables:
        user, item = self.user[...], self.item[...]
        users, items = propagation.light_gcn(self.graph.get_value(), user, item, self.layers)
        return users, items + item

    def tables(self) -> base.Tables:
        """Return P(e) of users [U, D] and of items [I, D]."""
        users, items = self._states()
        return self.predictor(users), self.predictor(items)

    def scores(self, tables: base.Tables, batch: dict[str, jax.Array]) -> jax.Array:
        return tables[0][batch["user"]] @ tables[1].T  # [B, I]
