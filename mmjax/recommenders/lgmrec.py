"""LGMRec: local graphs of ids and content, and a global hypergraph."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.core.errors import InputError
from mmjax.ops import contrastive, draws, graph
from mmjax.ops.normalize import unit
from mmjax.recommenders import base, losses
from mmjax.recommenders.layers import initializers, projection, propagation


class LGMRec(nnx.Module):
    """LGMRec: local graphs and a global hypergraph of learned attributes.

    Guo et al., AAAI 2024: s = <z_u, z_i>, z = c + sum_m n(x_m) + alpha n(sum_m g_m).

    n makes rows unit vectors; c is the mean of LightGCN's states 0..L of the id tables. For each
    modality, with R the user-item matrix, A its symmetric normalisation, frozen features F_m, H
    hyperedges, l = `modal_layers`, h = `hyper_layers` and t the temperature,

        x_m = A^l (D_u^-1 R F_m W_m | F_m W_m)            of users and items, only the last state
        a_m,i = softmax((F_m V_m + noise) / t) [I, H],    a_m,u = softmax((R F_m V_m + noise) / t)
        g_m,i = (b b^T)^h c_i,    g_m,u = drop(a_m,u) b^T (b b^T)^(h-1) c_i,    b = drop(a_m,i)

    where noise is Gumbel's, new in each step. Products with b are computed from the right, over
    the H hyperedges. The loss is

        BPR(z) + cl_weight sum_{m<n} [C(g_m,u, g_n,u) + C(g_m,i, g_n,i)]
            + l_w (|z_u| + |z_i| + |z_j|) / B,
        C(p, q) = -sum_k log [exp(cos(p_k, q_k) / t) / sum_v exp(cos(p_k, q_v) / t)]

    with k in the batch (its users, its positives) and v all users or items: a sum, so that the
    contrast grows with the batch size, and Frobenius norms that are not squared. As published there
    are two modalities, the first (visual) against the second: other numbers sum over all pairs in
    their order, and one has no C; MMRec's code needs both. An item without a modality is in none of
    its hyperedges and in no C of it.

    Scores take a without noise. MMRec draws it there too, so that its numbers change from one
    evaluation to the next: `noisy_evaluation` draws it once per trial.
    """

    def __init__(
        self,
        catalog: base.Catalog,
        *,
        dim: int,
        layers: int = 2,
        modal_layers: int = 2,
        hyper_layers: int = 1,
        hyperedges: int = 4,
        alpha: float = 0.3,
        temperature: float = 0.2,
        eps: float = 1e-7,
        noisy_evaluation: bool = False,
        rngs: nnx.Rngs,
    ):
        if hyperedges < 1 or hyper_layers < 1:
            raise InputError(
                f"hyperedges={hyperedges} and hyper_layers={hyper_layers} must be at least 1"
            )
        self.dim, self.layers, self.modal_layers = dim, layers, modal_layers
        self.hyper_layers, self.alpha, self.temperature = hyper_layers, alpha, temperature

        def table(count: int) -> jax.Array:
            return initializers.init_table("xavier_uniform", rngs.params(), (count, dim))

        self.user, self.item = nnx.Param(table(catalog.n_users)), nnx.Param(table(catalog.n_items))
        # W_m and V_m side by side, so that the features are read once.
        self.contents = projection.contents(catalog, dim + hyperedges, bias=None, rngs=rngs)
        for content in self.contents:
            sizes = [(content.weight[...].shape[1], out) for out in (dim, hyperedges)]
            both = [
                initializers.init_table("xavier_uniform", rngs.params(), size).T for size in sizes
            ]
            content.weight = nnx.Param(jnp.concatenate(both))  # [D + H, F]
        dtype = self.user[...].dtype
        train = (catalog.train_user, catalog.train_item, catalog.shape)
        self.adjacency = base.Frozen(graph.bipartite(*train, eps=eps, dtype=dtype))
        history = graph.bipartite(*train, norm="none", dtype=dtype)
        self.history = base.Frozen(history)
        counts = np.diff(history.forward.starts)[:, None]
        self.share = base.Frozen((1 / (counts + eps)).astype(dtype))  # [U, 1]
        self.seed = base.Drawn(jax.random.bits(rngs.params())) if noisy_evaluation else None

    def loss(
        self,
        batch: dict[str, jax.Array],
        epoch: Any,
        *,
        l_w: float,
        cl_weight: float = 1e-4,
        drop: float = 0.5,
        key: jax.Array,
    ) -> jax.Array:
        tables, hyper = self._embed(key, drop)
        total = jax.nn.softplus(-losses.margin(tables, batch)).mean()
        total += l_w * losses.penalty(losses.rows(tables, batch), "norms")
        user, pos = batch["user"], batch["pos"]
        for first, second in itertools.combinations(zip(hyper, self.contents, strict=True), 2):
            (users, items), content = first
            (second_users, second_items), second_content = second
            present = content.weight_of(pos) * second_content.weight_of(pos)
            for pair, nodes, weights in (
                ((users, second_users), user, jnp.ones_like(present)),
                ((items, second_items), pos, present),
            ):
                total += contrastive.against_all(
                    *pair, nodes, self.temperature, cl_weight * weights
                )
        return total

    def _embed(
        self, key: jax.Array | None, drop: Any = None
    ) -> tuple[base.Tables, list[base.Tables]]:
        """Return z, and the g of each modality.

        Without a key there is no noise, without `drop` no dropout.
        """
        adjacency, history = self.adjacency.get_value(), self.history.get_value()
        id_states = propagation.light_gcn(adjacency, self.user[...], self.item[...], self.layers)
        (users, items), hyper = id_states, []
        for n, content in enumerate(self.contents):
            projected = content()  # [I, D + H]
            gathered = graph.propagate(history, projected)  # [U, D + H]
            item, item_logits = jnp.split(projected, [self.dim], axis=1)
            user, user_logits = jnp.split(gathered, [self.dim], axis=1)
            local = user * self.share[...], item
            for state in propagation.propagations(adjacency, *local, self.modal_layers):
                local = state
            users, items = users + unit(local[0]), items + unit(local[1])
            keys = [None, None] if key is None else jax.random.split(jax.random.fold_in(key, n))
            of_items = self._memberships(keys[0], item_logits, drop)
            if content.present is not None:
                of_items = jnp.where(content.present[...][:, None], of_items, 0)
            of_users = self._memberships(keys[1], user_logits, drop)
            g = id_states[1]
            for _ in range(self.hyper_layers):
                edges = of_items.T @ g  # [H, D]
                g = of_items @ edges
            hyper.append((of_users @ edges, g))
        g_users, g_items = (unit(sum(g)) for g in zip(*hyper, strict=True))
        return (users + self.alpha * g_users, items + self.alpha * g_items), hyper

    def _memberships(self, key: jax.Array | None, logits: jax.Array, drop: Any) -> jax.Array:
        """Return the memberships of nodes in hyperedges, [N, H]."""
        keys: Any = (None, None) if key is None else jax.random.split(key)
        of_noise, of_drop = keys
        if key is not None:
            logits = logits + jax.random.gumbel(of_noise, logits.shape, logits.dtype)
        shares = jax.nn.softmax(logits / self.temperature, axis=1)
        return shares if drop is None else draws.dropout(of_drop, shares, drop)

    def tables(self) -> base.Tables:
        """Return z of users [U, D] and items [I, D]."""
        return self._embed(None if self.seed is None else jax.random.key(self.seed[...]))[0]

    def scores(self, tables: base.Tables, batch: dict[str, jax.Array]) -> jax.Array:
        return tables[0][batch["user"]] @ tables[1].T  # [B, I]
