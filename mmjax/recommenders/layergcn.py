"""LayerGCN: layer states weighted by their similarity to the id embeddings."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.core.errors import InputError
from mmjax.core.names import choice
from mmjax.ops import graph, weighted_graph
from mmjax.ops.normalize import cosine
from mmjax.recommenders import base, losses
from mmjax.recommenders.layers import initializers, propagation

PRUNINGS = ("degree", "random", "mixed")


class LayerGCN(nnx.Module):
    """LayerGCN: LightGCN with layers refined by similarity.

    Zhou et al., ICDE 2023: s = <e_u, e_i>, e the sum of the states 1..L, without x_0, and

        x_l = cos(h_l, x_0) h_l row by row,   h_l = G x_(l-1),   G = D^-1/2 A D^-1/2

    Each epoch trains on floor((1 - drop) E) of the edges, normalised again; evaluation uses all.
    `pruning` draws what stays without replacement: `degree` in proportion to 1/sqrt(d_u d_i),
    `random` with equal chances, `mixed` the one or the other. The loss is the sum over the batch of

        -log sigmoid(s_ui - s_uj) + l_w (|x_u|^2 + |x_i|^2 + |x_j|^2) / 2

    with x the id embeddings. MMRec's is `mixed`, in turn from epoch to epoch, the first by degree;
    here a coin decides, since an epoch knows its key and not its number.
    """

    def __init__(
        self,
        catalog: base.Catalog,
        *,
        dim: int,
        layers: int = 4,
        drop: float = 0.1,
        pruning: str = "degree",
        eps: float = 1e-7,
        init: str = "xavier_uniform",
        rngs: nnx.Rngs,
    ):
        if not 0 <= drop < 1:
            raise InputError(f"drop={drop} must be at least 0 and less than 1")
        if layers < 1:
            raise InputError(f"layers={layers} must be at least 1: the first state is left out")
        self.layers, self.eps = layers, eps
        self.pruning = choice("pruning", pruning, PRUNINGS)

        def table(count: int) -> jax.Array:
            return initializers.init_table(init, rngs.params(), (count, dim))

        self.user, self.item = nnx.Param(table(catalog.n_users)), nnx.Param(table(catalog.n_items))
        pattern = weighted_graph.pattern(catalog.train_user, catalog.train_item, catalog.shape)
        self.whole = base.Frozen(pattern)
        self.kept = int((1 - drop) * len(pattern.forward.rows))

    def epoch(self, key: jax.Array) -> graph.Graph:
        """Draw the pruned user-item graph."""
        pattern, dtype = self.whole.get_value(), self.user[...].dtype
        if self.kept == len(pattern.forward.rows):
            return propagation.normalised(pattern, self.eps, dtype)
        of_coin, of_edges = jax.random.split(key)
        odds = jnp.log(weighted_graph.symmetric(pattern, self.eps, dtype))
        if self.pruning == "random":
            odds = jnp.zeros_like(odds)
        elif self.pruning == "mixed":
            odds = jnp.where(jax.random.bernoulli(of_coin), odds, 0)
        kept = weighted_graph.keep(pattern, weighted_graph.draw(of_edges, odds, self.kept))
        return propagation.normalised(kept, self.eps, dtype)

    def loss(
        self, batch: dict[str, jax.Array], epoch: graph.Graph, *, l_w: float, key: Any
    ) -> jax.Array:
        mean = losses.bpr(losses.margin(self._tables(epoch), batch), "softplus")
        ego = losses.rows((self.user[...], self.item[...]), batch)
        mean += l_w * losses.penalty(ego, "squares")
        return batch["user"].shape[0] * mean

    def _tables(self, adjacency: graph.Graph) -> base.Tables:
        ego = state = self.user[...], self.item[...]
        states = []
        for _ in range(self.layers):
            pairs = zip(next(propagation.propagations(adjacency, *state, 1)), ego, strict=True)
            state = tuple(cosine(h, x)[:, None] * h for h, x in pairs)
            states.append(state)
        users, items = zip(*states, strict=True)
        return sum(users), sum(items)

    def tables(self) -> base.Tables:
        """Return users [U, D] and items [I, D] on the whole graph."""
        pattern, dtype = self.whole.get_value(), self.user[...].dtype
        return self._tables(propagation.normalised(pattern, self.eps, dtype))

    def scores(self, tables: base.Tables, batch: dict[str, jax.Array]) -> jax.Array:
        return tables[0][batch["user"]] @ tables[1].T  # [B, I]
