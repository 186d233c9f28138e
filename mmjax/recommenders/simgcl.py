"""SimGCL: LightGCN with a contrast of two noisy copies of its states."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.core.errors import InputError
from mmjax.core.names import choice
from mmjax.ops import contrastive, draws, graph
from mmjax.ops.normalize import unit
from mmjax.recommenders import base, losses
from mmjax.recommenders.layers import initializers, propagation


class SimGCL(nnx.Module):
    """SimGCL: LightGCN with a contrast between noisy states.

    Yu et al., SIGIR 2022: s = <e_u, e_i>, e the mean of LightGCN's states 1..L, without 0.

        BPR(e) + l_w (|e_u| + |e_i|) / B + cl_weight (C(users) + C(positives))
        C = mean of -log [exp(cos(e'_a, e''_a) / t) / sum_b exp(cos(e'_a, e''_b) / t)]

    over the distinct users (or positives) a, b of the batch, t the temperature. e' and e'' have
    noise in each layer: x + `noise` sign(x) * n(r), r uniform in [0, 1), n unit vectors; the next
    layer takes the sum.

    This is Elliot's: its BPR is -log(1e-5 + sigmoid) (`ranking_loss="offset"`), its penalty the
    Frobenius norms, not squared, of the propagated rows of users and positives. The authors'
    SELFRec has offsets of its own, and in its first form half squares that also count negatives.
    """

    def __init__(
        self,
        catalog: base.Catalog,
        *,
        dim: int,
        layers: int = 3,
        eps: float = 0.0,
        ranking_loss: str = "offset",
        offset: float = 1e-5,
        regulariser: str = "norms",
        init: str = "xavier_uniform",
        rngs: nnx.Rngs,
    ):
        if layers < 1:
            raise InputError(f"layers={layers} must be at least 1: the first state is left out")
        self.layers, self.offset = layers, offset
        self.ranking_loss = choice("ranking_loss", ranking_loss, losses.LOSSES)
        self.regulariser = choice("regulariser", regulariser, losses.PENALTIES)

        def table(count: int) -> jax.Array:
            return initializers.init_table(init, rngs.params(), (count, dim))

        self.user, self.item = nnx.Param(table(catalog.n_users)), nnx.Param(table(catalog.n_items))
        self.graph = base.Frozen(
            graph.bipartite(
                catalog.train_user,
                catalog.train_item,
                catalog.shape,
                eps=eps,
                dtype=self.user[...].dtype,
            )
        )

    def loss(
        self,
        batch: dict[str, jax.Array],
        epoch: Any,
        *,
        l_w: float,
        cl_weight: float = 0.5,
        noise: float = 0.1,
        temperature: float = 0.2,
        key: jax.Array,
    ) -> jax.Array:
        tables = self.tables()
        total = losses.bpr(losses.margin(tables, batch), self.ranking_loss, self.offset)
        user, pos, _ = losses.rows(tables, batch)
        total += l_w * losses.penalty((user, pos), self.regulariser)
        states = [self._tables(k, noise) for k in jax.random.split(key)]
        for first, second, nodes in zip(*states, (batch["user"], batch["pos"]), strict=True):
            total += cl_weight * distinct_nce(first, second, nodes, temperature)
        return total

    def _tables(self, key: jax.Array | None = None, noise: jax.Array | float = 0.0) -> base.Tables:
        """Return the mean of the states 1..L.

        Without a key there is no noise.
        """
        adjacency, states = self.graph.get_value(), []
        state = self.user[...], self.item[...]
        for layer in range(self.layers):
            state = next(propagation.propagations(adjacency, *state, 1))
            if key is not None:
                keys = jax.random.split(jax.random.fold_in(key, layer))
                user, item = (disturbed(k, x, noise) for k, x in zip(keys, state, strict=True))
                state = user, item
            states.append(state)
        users, items = zip(*states, strict=True)
        return propagation.average(users), propagation.average(items)

    def tables(self) -> base.Tables:
        """Return users [U, D] and items [I, D]."""
        return self._tables()

    def scores(self, tables: base.Tables, batch: dict[str, jax.Array]) -> jax.Array:
        return tables[0][batch["user"]] @ tables[1].T  # [B, I]


def disturbed(key: jax.Array, x: jax.Array, noise: jax.Array | float) -> jax.Array:
    """Move each row by a distance of `noise`, within its orthant."""
    return x + noise * jnp.sign(x) * unit(draws.uniform(key, x.shape, x.dtype))


def distinct_nce(
    p: jax.Array, q: jax.Array, nodes: jax.Array, temperature: jax.Array | float
) -> jax.Array:
    """Return the InfoNCE of the distinct nodes of a batch.

    It is `contrastive.info_nce` of the rows of p and q at nodes [B], each node once however often
    it occurs.
    """
    nodes = jnp.sort(nodes)
    first = jnp.append(True, nodes[1:] != nodes[:-1])  # [B]
    a, b = unit(p[nodes]) / temperature, unit(q[nodes])
    # An extra column puts the logits of repeated nodes far below all, so no sum counts them.
    a = jnp.concatenate([a, jnp.ones_like(a[:, :1])], axis=1)
    b = jnp.concatenate([b, jnp.where(first, 0, -1e9)[:, None].astype(b.dtype)], axis=1)
    weights = (first / first.sum()).astype(a.dtype)
    return contrastive.cross_entropy(a, b, jnp.arange(len(nodes)), weights)
