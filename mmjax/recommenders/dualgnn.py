"""DualGNN: propagation per modality, then over a graph of users."""

import math
from typing import Any

import jax
from flax import nnx

from mmjax.ops import graph
from mmjax.recommenders import base, losses
from mmjax.recommenders.layers import user_graph


class DualGNN(nnx.Module):
    """DualGNN: modality states with a graph of like-minded users.

    Wang et al., IEEE Transactions on Multimedia 2023: s = <z_u, z_i>.

    x_m are the states of users and items in each modality and a the weights of `user_graph.Towers`.
    G joins users with the `peers` with whom they share most items (`user_graph.Peers`):

        z_i = sum_m x_m,i,   y_u = sum_m a_um x_m,u,   z_u = y_u + sum_v G_uv y_v

    with y = x where there is one modality. The loss is, with P_m the users' tables,

        -mean log_2 sigmoid(s_ui - s_uj) + l_w [sum_m mean P_m,u^2 + mean a^2],

    rows of the batch in the first mean, all of a in the second. Logarithms are to base 2, as
    published: l_w weighs as .69 l_w would with natural ones.

    MMRec computes the items' sum in the memory of the first modality, whose users then are that sum
    as well: y_u = a_u1 sum_m x_m,u + sum_m>1 a_um x_m,u (`sum_in_place`). It fills short lists of
    peers at random (`fill`), and penalises weights of items that nothing uses, left out here. It
    predicts from tables kept from before the last step; here they are those of the present
    parameters, and of the lists that are not filled.
    """

    def __init__(
        self,
        catalog: base.Catalog,
        *,
        dim: int,
        layers: int = 2,
        peers: int = 40,
        fill: bool = False,
        sum_in_place: bool = False,
        rngs: nnx.Rngs,
    ):
        self.sum_in_place = sum_in_place
        self.towers = user_graph.Towers(catalog, dim, layers=layers, rngs=rngs)
        dtype = self.towers.preferences[0][...].dtype
        self.peers = user_graph.Peers(catalog, peers, fill=fill, dtype=dtype)

    def epoch(self, key: jax.Array) -> graph.Graph:
        """Return the user graph G, filled anew with `fill`."""
        return self.peers.graph(key)

    def loss(
        self, batch: dict[str, jax.Array], epoch: graph.Graph, *, l_w: float, key: Any
    ) -> jax.Array:
        bpr = jax.nn.softplus(-losses.margin(self._tables(epoch), batch)).mean() / math.log(2)
        return bpr + l_w * self.towers.penalty(batch["user"])

    def _tables(self, peers: graph.Graph) -> base.Tables:
        users, items = self.towers()
        if self.sum_in_place:
            total: Any = sum(users)
            users = [total, *users[1:]]
        user: Any = sum(self.towers.weigh(users))
        user = user + graph.propagate(peers, user)
        item: Any = sum(items)
        return user, item

    def tables(self) -> base.Tables:
        """Return users [U, D] and items [I, D]."""
        return self._tables(self.peers.graph(None))

    def scores(self, tables: base.Tables, batch: dict[str, jax.Array]) -> jax.Array:
        return tables[0][batch["user"]] @ tables[1].T  # [B, I]
