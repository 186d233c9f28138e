"""MICRO: one learned item graph a modality, fused by attention and held to the fusion."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax import neighbours
from mmjax.recommenders import core, latent, parts

LARGEST = 1 << 24  # similarities in memory at once: 64 MiB


class MICRO(nnx.Module):
    """Zhang et al., TKDE 2022: s = <e_u, e_i + n(h_i)>, h = sum_m a_m E_m, E_m = S_m^L I.

    e, n, I and the learned S_m are LATTICE's, one graph a modality; a = softmax_m(q . tanh(W E_m +
    b)), item by item. The loss is BPR (softplus) + l_w/2 sum ||.||^2 / B of the final rows of the
    batch + cl_weight sum_m C(E_m, h). C is the mean over ALL items i of

        -log exp(c(E_i, h_i)) / [sum_{j != i} exp(c(E_i, E_j)) + sum_j exp(c(E_i, h_j))],

    c the cosine over `temperature`; computed by blocks of items, and again for the gradient, so
    that memory stays bounded. The authors' blocks have 4096 rows; no number depends on that.

    S_m are built as LATTICE's, where the momentum of parameters without a gradient is spoken of.
    The authors' `ngcf` body is not here; `layers=0` is their `mf`. An item without a modality has
    no edges of it and no part in its C.
    """

    def __init__(
        self,
        catalog: core.Catalog,
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
        table = lambda count: core.init_table("xavier_uniform", rngs.params(), (count, dim))  # noqa: E731
        self.user, self.item = nnx.Param(table(catalog.n_users)), nnx.Param(table(catalog.n_items))
        options = dict(top_k=top_k, skip=skip, self_one=False, trainable=trainable_features)
        self.similar = nnx.List(
            latent.ItemGraph(catalog, [name], dim, **options, rngs=rngs)
            for name in catalog.modalities()
        )
        self.attention = parts.Attention(dim, rngs=rngs)
        self.graph = core.Frozen(latent.looped(catalog, "left", self.user[...].dtype))

    def epoch(self, key: Any) -> tuple[latent.Kept, ...]:
        """The item graphs."""
        return tuple(similar.build() for similar in self.similar)

    def loss(
        self,
        batch: dict[str, jax.Array],
        epoch: tuple[latent.Kept, ...],
        *,
        l_w: float,
        cl_weight: float = 0.03,
        temperature: float = 0.5,
        key: Any,
    ) -> jax.Array:
        tables, states, fused = self._states(epoch, batch["step"] == 0)
        user, pos, neg = parts.rows(tables, batch)
        total = core.bpr((user * (pos - neg)).sum(axis=-1), "softplus")
        total += l_w * core.penalty((user, pos, neg), "squares")
        for similar, state in zip(self.similar, states, strict=True):
            there = similar.contents[0].weight_of(jnp.arange(state.shape[0]))
            total += cl_weight * (there * _contrast(state, fused, there, temperature)).mean()
        return total

    def _states(
        self, kept: tuple[latent.Kept, ...], first: jax.Array | bool
    ) -> tuple[parts.Tables, list[jax.Array], jax.Array]:
        """Users and items; E_m; h."""
        item = self.item[...]
        users, items = latent.walk(self.graph.get_value(), self.user[...], item, self.layers)
        states = [
            similar.propagate(graph, first, item, self.item_layers)
            for similar, graph in zip(self.similar, kept, strict=True)
        ]
        shares = self.attention(states)
        fused = sum(share * state for share, state in zip(shares, states, strict=True))
        return (users, items + neighbours.unit(fused)), states, fused

    def tables(self) -> parts.Tables:
        """Users [U, D] and items [I, D] on graphs built anew."""
        return self._states(self.epoch(None), False)[0]

    def scores(self, tables: parts.Tables, batch: dict[str, jax.Array]) -> jax.Array:
        return tables[0][batch["user"]] @ tables[1].T  # [B, I]


def _contrast(
    state: jax.Array, fused: jax.Array, there: jax.Array, temperature: jax.Array | float
) -> jax.Array:
    """C of every item [I], among those that are `there` [I] (1 or 0)."""
    state, fused = neighbours.unit(state), neighbours.unit(fused)
    count = state.shape[0]
    size = min(count, max(1, LARGEST // count))
    blocks = -(-count // size)
    rows = jnp.pad(state, ((0, blocks * size - count), (0, 0))).reshape(blocks, size, -1)
    starts = jnp.arange(blocks) * size

    @jax.checkpoint
    def others(block: tuple[jax.Array, jax.Array]) -> jax.Array:
        start, mine = block
        # Cosines are at most 1: less 1, nothing overflows.
        same = jnp.exp((mine @ state.T - 1) / temperature)
        both = jnp.exp((mine @ fused.T - 1) / temperature)
        own = (start + jnp.arange(size))[:, None] == jnp.arange(count)[None]
        return (jnp.where(own, 0, same) + both) @ there  # [B]

    total = jax.lax.map(others, (starts, rows)).reshape(-1)[:count]
    return jnp.log(total) - ((state * fused).sum(axis=-1) - 1) / temperature
