"""DRAGON: propagation per modality, then among users and among items."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.ops import graph
from mmjax.recommenders import base, losses
from mmjax.recommenders.layers import projection, propagation, user_graph


class DRAGON(nnx.Module):
    """DRAGON: attentive concatenation of modalities over dual graphs.

    Zhou et al., ECAI 2023: s = <z_u, z_i>, modalities side by side (attentive concatenation).

    x_m are the states of users and items in each modality and a the weights of `user_graph.Towers`.
    G joins users with the `peers` with whom they share most items (`user_graph.Peers`). S joins
    items with similar ones and is FREEDOM's frozen graph: sum_m c_m S_m, the `top_k` largest
    cosines of the features in a row, the item itself among them, every edge 1/k, c_m by name in
    `weights` (the paper: .1 for images) and the rest shared by the other modalities.

        y_u = (a_u1 x_1,u | a_u2 x_2,u | ...),   z_u = y_u + sum_v G_uv y_v
        y_i = (x_1,i | x_2,i | ...),             z_i = y_i + (S^l y)_i,  l = `item_layers`

    with y = x where there is one modality. The loss is, with P_m the users' tables,

        -mean log_2 sigmoid(s_ui - s_uj) + l_w [sum_m mean P_m,u^2 + mean a^2],

    rows of the batch in the first mean, all of a in the second; see DualGNN for the base of the
    logarithm. An item without a modality has no edges in its S_m.

    MMRec fills short lists of peers at random (`fill`), and keeps S in a file that is named by k
    only, so that other features meet the old graph. It predicts from tables kept from before the
    last step; here they are those of the present parameters, and of the lists that are not filled.
    """

    def __init__(
        self,
        catalog: base.Catalog,
        *,
        dim: int,
        layers: int = 2,
        item_layers: int = 1,
        peers: int = 40,
        fill: bool = False,
        top_k: int = 10,
        weights: Mapping[str, float] | None = None,
        eps: float = 1e-7,
        rngs: nnx.Rngs,
    ):
        self.item_layers = item_layers
        self.towers = user_graph.Towers(catalog, dim, layers=layers, rngs=rngs)
        dtype = self.towers.preferences[0][...].dtype
        self.peers = user_graph.Peers(catalog, peers, fill=fill, dtype=dtype)
        shares = projection.shares(catalog.modalities(), weights or {}, 1.0)
        self.similar = base.Frozen(propagation.similar(catalog, shares, top_k, eps, dtype))

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
        user = jnp.concatenate(self.towers.weigh(users), axis=1)
        item = similar = jnp.concatenate(items, axis=1)
        for _ in range(self.item_layers):
            similar = graph.propagate(self.similar.get_value(), similar)
        return user + graph.propagate(peers, user), item + similar

    def tables(self) -> base.Tables:
        """Return users [U, M D] and items [I, M D]."""
        return self._tables(self.peers.graph(None))

    def scores(self, tables: base.Tables, batch: dict[str, jax.Array]) -> jax.Array:
        return tables[0][batch["user"]] @ tables[1].T  # [B, I]
