"""Parts of DualGNN and DRAGON: modality towers and a user graph."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.core.errors import InputError
from mmjax.ops import graph, weighted_graph
from mmjax.ops.normalize import unit
from mmjax.recommenders import base
from mmjax.recommenders.layers import dense, initializers, projection, propagation


class Towers(nnx.Module):
    """Content of each modality, propagated over the user-item graph.

    With a table P of the users and frozen features F, a modality's states are the sum of LightGCN's
    states 0..L from

        x_0 = n([P; leaky(F W + b) V + c]),  hidden width 4 D.

    n makes rows unit vectors; an item without the modality has x_0 = 0. With more than one modality
    there are weights a [U, M] of the modalities for each user: they begin as a softmax, all nearly
    equal, and are then trained directly.
    """

    def __init__(self, catalog: base.Catalog, dim: int, *, layers: int, rngs: nnx.Rngs):
        if layers < 0:
            raise InputError(f"layers={layers} must not be negative")
        names, self.layers = catalog.modalities(), layers

        def table(width: int) -> jax.Array:
            return initializers.init_table("xavier_normal", rngs.params(), (catalog.n_users, width))

        self.preferences = nnx.List([nnx.Param(table(dim)) for _ in names])
        self.hidden = projection.contents(catalog, 4 * dim, rngs=rngs)
        self.out = nnx.List([dense.linear(4 * dim, dim, rngs=rngs) for _ in names])
        shares = jax.nn.softmax(table(len(names)), axis=1)
        self.shares = nnx.Param(shares) if len(names) > 1 else None
        train = (catalog.train_user, catalog.train_item, catalog.shape)
        self.adjacency = base.Frozen(graph.bipartite(*train, dtype=shares.dtype))

    def __call__(self) -> tuple[list[jax.Array], list[jax.Array]]:
        """Return users [U, D] and items [I, D] of every modality."""
        user = jnp.concatenate([unit(table[...]) for table in self.preferences], axis=1)
        starts = []
        for hidden, out in zip(self.hidden, self.out, strict=True):
            x = unit(out(jax.nn.leaky_relu(hidden())))
            present = hidden.present
            starts.append(x if present is None else jnp.where(present[...][:, None], x, 0))
        item = jnp.concatenate(starts, axis=1)
        users, items = user, item  # all modalities side by side: the graph is read once
        for u, i in propagation.propagations(self.adjacency.get_value(), user, item, self.layers):
            users, items = users + u, items + i
        count = len(starts)
        return jnp.split(users, count, axis=1), jnp.split(items, count, axis=1)

    def weigh(self, users: list[jax.Array]) -> list[jax.Array]:
        """Return a_um x_um of every modality.

        The only modality has no weight: x is returned as it is.
        """
        if self.shares is None:
            return users
        return [share * x for share, x in zip(self._columns(), users, strict=True)]

    def _columns(self) -> list[jax.Array]:
        assert self.shares is not None
        return jnp.split(self.shares[...], len(self.preferences), axis=1)  # [U, 1] each

    def penalty(self, user: jax.Array) -> jax.Array:
        """Return the penalty of the user tables and the weights.

        It is sum_m mean P_m,u^2 over the users of the batch + mean a^2 over all users.
        """
        total: Any = sum(jnp.square(table[...][user]).mean() for table in self.preferences)
        return total if self.shares is None else total + jnp.square(self.shares[...]).mean()


class Peers(nnx.Module):
    """Graph G [U, U] of users with the most common items.

    Each user is joined with the `count` users with whom it has most items in common, its peers.
    G_uv is the softmax over the peers v of u, without u, of the number of common items; ties go to
    the lower user. Users without peers have no edges.

    As in MMRec, `fill` draws anew each epoch for users with fewer than `count` peers: until there
    are `count`, one of those already in the list, drawn uniformly, is appended again, and the
    softmax is over that list. So a peer that is listed n times counts n times. Evaluation takes
    each peer once.
    """

    def __init__(self, catalog: base.Catalog, count: int, *, fill: bool, dtype: np.dtype):
        if count < 1:
            raise InputError(f"peers={count} must be at least 1")
        self.count, self.fill = count, fill
        matrix = graph.incidence(catalog.train_user, catalog.train_item, catalog.shape)
        common = graph.in_common(matrix, top_k=count, itself=False)
        common.sort_indices()
        rows = np.repeat(np.arange(catalog.n_users), np.diff(common.indptr))
        square = (catalog.n_users, catalog.n_users)
        self.pattern = base.Frozen(weighted_graph.pattern(rows, common.indices, square))
        self.common = base.Frozen(common.data.astype(dtype))  # [E], in the same order

    def graph(self, key: jax.Array | None) -> graph.Graph:
        """Return G; without a key or `fill` nothing is drawn."""
        pattern, logits = self.pattern.get_value(), jnp.asarray(self.common[...])
        if self.fill and key is not None:
            logits += jnp.log(self._times(key)).astype(logits.dtype)
        return weighted_graph.weighted(pattern, weighted_graph.softmax(pattern, logits))

    def _times(self, key: jax.Array) -> jax.Array:
        """Draw how often each edge occurs in its filled list.

        The result is float [E]. The lists are drawn by Polya's urn, all rows at once.
        """
        side = self.pattern.get_value().forward
        lengths = jnp.diff(side.starts)  # [U]
        chance = jax.random.uniform(key, (self.count, len(lengths)), jnp.float32)

        def append(place: int, lists: jax.Array) -> jax.Array:
            drawn = (chance[place] * place).astype(jnp.int32)  # below `place`
            again = jnp.take_along_axis(lists, drawn[None], axis=0)[0]
            return lists.at[place].set(jnp.where(place < lengths, place, again))

        lists = jnp.zeros((self.count, len(lengths)), jnp.int32)
        lists = jax.lax.fori_loop(1, self.count, append, lists)  # places in the row, [K, U]
        places = jnp.where(lengths[None] > 0, side.starts[None, :-1] + lists, len(side.rows))
        return jnp.zeros(len(side.rows)).at[places.reshape(-1)].add(1, mode="drop")
