"""SelfCF: users and items predict each other's perturbed states, without negatives."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.core.names import choice
from mmjax.ops import draws, graph, weighted_graph
from mmjax.ops.normalize import cosine
from mmjax.recommenders import base
from mmjax.recommenders.layers import dense, initializers, propagation

PERTURBATIONS = ("embedding", "edges")


class SelfCF(nnx.Module):
    """SelfCF: self-supervised LightGCN without negatives.

    Zhou et al., TORS 2023, on LightGCN: e the mean of its states 0..L, P(e) = e W + b. The loss is

        -cos(P(e_u), t_i) / 2 - cos(P(e_i), t_u) / 2, mean over the batch's interactions (u, i)
        + l_w (|e_u|^2 + |e_i|^2) / 2, their sum

    where no gradient goes through the targets t, which are

        embedding   drop(e), entries of e dropped (SelfCF-ed)
        edges       one more propagation of e over a graph with dropped edges (SelfCF-ep)

    with probability `dropout`, the rest divided by 1 - dropout. s = <P(e_u), e_i> + <e_u, P(e_i)>.

    The authors have no penalty (l_w = 0). In MMRec each step also drops entries of the encoder's
    own graph, the two directions of an edge separately, with a probability that is uniform in
    [0, 1) (`encoder_dropout`, BUIR's). Historical embeddings (SelfCF-he) need a memory between
    steps that a loss does not have here.
    """

    def __init__(
        self,
        catalog: base.Catalog,
        *,
        dim: int,
        layers: int = 2,
        perturbation: str = "embedding",
        encoder_dropout: bool = False,
        eps: float = 1e-7,
        init: str = "xavier_uniform",
        rngs: nnx.Rngs,
    ):
        self.layers, self.eps, self.encoder_dropout = layers, eps, encoder_dropout
        self.perturbation = choice("perturbation", perturbation, PERTURBATIONS)

        def table(count: int) -> jax.Array:
            return initializers.init_table(init, rngs.params(), (count, dim))

        self.user, self.item = nnx.Param(table(catalog.n_users)), nnx.Param(table(catalog.n_items))
        self.predictor = dense.linear(dim, dim, rngs=rngs)
        pattern = weighted_graph.pattern(catalog.train_user, catalog.train_item, catalog.shape)
        self.whole = base.Frozen(pattern)

    def epoch(self, key: jax.Array) -> jax.Array:
        """Return the weights [E] of the graph's edges.

        Nothing is drawn.
        """
        return self._weights()

    def _weights(self) -> jax.Array:
        return weighted_graph.symmetric(self.whole.get_value(), self.eps, self.user[...].dtype)

    def loss(
        self,
        batch: dict[str, jax.Array],
        epoch: jax.Array,
        *,
        l_w: float = 0.0,
        dropout: float = 0.5,
        key: jax.Array,
    ) -> jax.Array:
        of_rate, of_graph, of_target = jax.random.split(key, 3)
        rate = jax.random.uniform(of_rate, dtype=epoch.dtype)
        graphs = (
            self._graphs(epoch, of_graph, rate) if self.encoder_dropout else self._graphs(epoch)
        )
        tables = self._encode(graphs)
        user, pos = tables[0][batch["user"]], tables[1][batch["pos"]]
        if self.perturbation == "edges":
            to_users, to_items = self._graphs(epoch, of_target, dropout)
            users, items = jax.lax.stop_gradient(tables)
            user_target = graph.propagate(to_users, items)[batch["user"]]
            pos_target = graph.propagate(to_items, users)[batch["pos"]]
        else:
            keys, rows = jax.random.split(of_target), jax.lax.stop_gradient((user, pos))
            user_target, pos_target = (
                draws.dropout(k, x, dropout) for k, x in zip(keys, rows, strict=True)
            )
        alike = cosine(self.predictor(user), pos_target) + cosine(self.predictor(pos), user_target)
        squares = jnp.square(user).sum() + jnp.square(pos).sum()
        return -0.5 * alike.mean() + l_w * 0.5 * squares

    def _encode(self, graphs: tuple[graph.Graph, graph.Graph]) -> base.Tables:
        return propagation.light_gcn_over([graphs] * self.layers, self.user[...], self.item[...])

    def _graphs(
        self, weights: jax.Array, key: jax.Array | None = None, rate: Any = None
    ) -> tuple[graph.Graph, graph.Graph]:
        """Return graphs [U, I] to users and [I, U] to items.

        With a key, edges are dropped at `rate`, separately in each.
        """
        pattern = self.whole.get_value()
        if key is None:
            shared = weighted_graph.weighted(pattern, weights)
            return shared, shared.flip()
        to_users, to_items = (
            weighted_graph.weighted(pattern, draws.dropout(k, weights, rate))
            for k in jax.random.split(key)
        )
        return to_users, to_items.flip()

    def tables(self) -> base.Tables:
        """Return users (P(e_u) | e_u) and items (e_i | P(e_i)).

        They are [U, 2D] and [I, 2D].
        """
        users, items = self._encode(self._graphs(self._weights()))
        return (
            jnp.concatenate([self.predictor(users), users], axis=1),
            jnp.concatenate([items, self.predictor(items)], axis=1),
        )

    def scores(self, tables: base.Tables, batch: dict[str, jax.Array]) -> jax.Array:
        return tables[0][batch["user"]] @ tables[1].T  # [B, I]
