"""MICRO: one learned item graph per modality, fused by attention, contrasted."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.ops import pairwise
from mmjax.ops.normalize import unit
from mmjax.recommenders import base, losses
from mmjax.recommenders.layers import dense, initializers, item_graph


class MICRO(nnx.Module):
    """MICRO: latent item graphs with a contrast to their fusion.

    Zhang et al., TKDE 2022: s = <e_u, e_i + n(h_i)>, h = sum_m a_m E_m, E_m = S_m^L I.

    e, n, L, I and the learned S_m are LATTICE's, one graph per modality, and
    a = softmax_m(q . tanh(W E_m + b)), item by item. The loss is BPR (softplus) +
    l_w/2 sum ||.||^2 / B of the final rows of the batch + cl_weight sum_m C(E_m, h). With E = E_m,
    C is the mean over ALL items i of

        -log {exp(c(E_i, h_i)) / [sum_{j != i} exp(c(E_i, E_j)) + sum_j exp(c(E_i, h_j))]},

    c the cosine over `temperature`; computed by blocks of items, and again for the gradient, so
    that memory stays bounded. The authors' blocks have 4096 rows; no number depends on that. A
    single modality is its own h.

    S_m are built as LATTICE's; see there for the momentum of parameters without a gradient. The
    authors' `ngcf` backbone is not here; `layers=0` is their `mf`. An item without a modality has
    no edges of it and no part in its C.
    """

    def __init__(
        self,
        catalog: base.Catalog,
        *,
        dim: int,
        layers: int = 2,
        item_layers: int = 1,
        top_k: int = 10,
        skip: float = 0.9,
        trainable_features: bool = True,
        rngs: nnx.Rngs,
    ):
        self.layers, self.item_layers = layers, item_layers

        def table(count: int) -> jax.Array:
            return initializers.init_table("xavier_uniform", rngs.params(), (count, dim))

        self.user, self.item = nnx.Param(table(catalog.n_users)), nnx.Param(table(catalog.n_items))
        options: dict[str, Any] = {"top_k": top_k, "skip": skip, "self_one": False}
        options["trainable"] = trainable_features
        self.similar = nnx.List(
            item_graph.ItemGraph(catalog, [name], dim, **options, rngs=rngs)
            for name in catalog.modalities()
        )
        self.attention = dense.Attention(dim, rngs=rngs)
        self.graph = base.Frozen(item_graph.looped(catalog, "left", self.user[...].dtype))

    def epoch(self, key: Any) -> tuple[item_graph.Kept, ...]:
        """Build the item graph of each modality."""
        return tuple(similar.build() for similar in self.similar)

    def loss(
        self,
        batch: dict[str, jax.Array],
        epoch: tuple[item_graph.Kept, ...],
        *,
        l_w: float,
        cl_weight: float = 0.03,
        temperature: float = 0.5,
        key: Any,
    ) -> jax.Array:
        tables, states, fused = self._states(epoch, batch["step"] == 0)
        user, pos, neg = losses.rows(tables, batch)
        total = losses.bpr((user * (pos - neg)).sum(axis=-1), "softplus")
        total += l_w * losses.penalty((user, pos, neg), "squares")
        for similar, state in zip(self.similar, states, strict=True):
            present = similar.contents[0].weight_of(jnp.arange(state.shape[0]))
            total += cl_weight * (present * _contrast(state, fused, present, temperature)).mean()
        return total

    def _states(
        self, kept: tuple[item_graph.Kept, ...], first: jax.Array | bool
    ) -> tuple[base.Tables, list[jax.Array], jax.Array]:
        """Return the tables of users and items, the E_m, and h."""
        item = self.item[...]
        users, items = item_graph.walk(self.graph.get_value(), self.user[...], item, self.layers)
        states = [
            similar.propagate(graph, first, item, self.item_layers)
            for similar, graph in zip(self.similar, kept, strict=True)
        ]
        fused: Any = states[0]
        if len(states) > 1:  # one modality has a = 1
            shares = self.attention(states)
            fused = sum(share * state for share, state in zip(shares, states, strict=True))
        return (users, items + unit(fused)), states, fused

    def tables(self) -> base.Tables:
        """Return users and items on new item graphs.

        They are [U, D] and [I, D].
        """
        return self._states(self.epoch(None), False)[0]

    def scores(self, tables: base.Tables, batch: dict[str, jax.Array]) -> jax.Array:
        return tables[0][batch["user"]] @ tables[1].T  # [B, I]


def _contrast(
    state: jax.Array, fused: jax.Array, there: jax.Array, temperature: jax.Array | float
) -> jax.Array:
    """Return the terms of C, one per item, [I].

    `there` [I], 1 or 0, marks the items that the sums run over.
    """
    single = fused is state  # of one modality: h is E_m
    state = unit(state) / jnp.sqrt(temperature)
    shift: Any = 1 / temperature
    fused = state if single else unit(fused) / jnp.sqrt(temperature)
    # Cosines over the temperature are at most `shift`; with it subtracted, nothing overflows.
    pair = (state * fused).sum(axis=-1) - shift
    same = pairwise.other_sums(state, there, shift)
    if single:
        both = same + there * jnp.exp(pair)
    else:
        both = pairwise.row_sums(state, fused, there, shift)
    return jnp.log(same + both) - pair
