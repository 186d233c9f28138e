"""SMORE: modalities denoised and fused as spectra, spread over item graphs."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from flax import nnx

from mmjax.core.errors import InputError
from mmjax.ops import draws, graph, knn
from mmjax.recommenders import base, losses
from mmjax.recommenders.layers import dense, initializers, projection, propagation


class SMORE(nnx.Module):
    """SMORE: spectral denoising and fusion of modalities.

    Ong and Khong, WSDM 2025: s = <c_u + t_u, c_i + t_i>, c LightGCN's mean of states 0..L.

    With x_m = F_m W_m + b, features F_m trained as well, X_m their orthonormal Fourier transform
    along the D columns, w complex filters and I the id embeddings, each modality and the fusion of
    all (f) give items a view,

        y_m = IFT(w_m X_m),    y_f = IFT(w_f prod_m X_m)
        v = S^l (I * sigma(gate(y))) of items,    D^-1/2 R D^-1/2 v of users,    l = `item_layers`

    over S_m, the features' `top_k` cosines with the row sums on both sides, and S_f, which has the
    edges of all S_m with the largest of their weights. Of both users and items then

        t = [sum_m sigma(prefer_m(c)) * a_m * v_m + sigma(prefer_f(c)) * v_f] / (M + 1)
        a_m = softmax over the D columns of Q_m tanh(P_m v_f + p_m)

    with dropout of rate `drop` on sigma(prefer). The loss is BPR (softplus) + l_w/2 sum ||.||^2 / B
    of the final rows of the batch + cl_weight [NCE(t_i, c_i) + NCE(t_u, c_u)], in-batch.

    Only rows of the batch are weighed; a node keeps one dropout mask wherever it occurs in a step.
    Filters are pairs of real numbers, [M + 1, D // 2 + 1, 2]. `top_k` is one number for all
    modalities or one for each, in their order. As published there are two modalities; with one, X_f
    is X_1 with a second filter. An item without a modality has no edges in its S_m, and its X_f is
    the product of the others.
    """

    def __init__(
        self,
        catalog: base.Catalog,
        *,
        dim: int,
        layers: int = 4,
        item_layers: int = 1,
        top_k: int | Sequence[int] = 10,
        trainable_features: bool = True,
        rngs: nnx.Rngs,
    ):
        names = catalog.modalities()
        top_ks = (top_k,) if isinstance(top_k, int) else tuple(top_k)
        top_ks = top_ks * len(names) if len(top_ks) == 1 else top_ks
        if len(top_ks) != len(names):
            raise InputError(
                f"top_k={top_k} has {len(top_ks)} numbers for the modalities {', '.join(names)}: "
                "give one for all, or one for each in this order"
            )
        self.layers, self.item_layers = layers, item_layers

        def table(count: int) -> jax.Array:
            return initializers.init_table("xavier_uniform", rngs.params(), (count, dim))

        self.user, self.item = nnx.Param(table(catalog.n_users)), nnx.Param(table(catalog.n_items))
        self.contents = projection.contents(catalog, dim, trainable=trainable_features, rngs=rngs)
        shape = len(names) + 1, dim // 2 + 1, 2
        self.filters = nnx.Param(jax.random.normal(rngs.params(), shape))

        def linears(n: int, **options: Any) -> nnx.List:
            return nnx.List([dense.linear(dim, dim, rngs=rngs, **options) for _ in range(n)])

        # The gate and the preference of the fusion come last.
        self.gates, self.prefers = linears(len(names) + 1), linears(len(names) + 1)
        self.hidden, self.queries = linears(len(names)), linears(len(names), bias=False)
        dtype = self.user[...].dtype
        similar = [
            knn.weigh(catalog.neighbours(name, k), "cosine")
            for name, k in zip(names, top_ks, strict=True)
        ]
        similar.append(strongest(similar))
        self.similar = nnx.List([base.Frozen(graph.from_scipy(s, dtype)) for s in similar])
        train = (catalog.train_user, catalog.train_item, catalog.shape)
        self.adjacency = base.Frozen(graph.bipartite(*train, dtype=dtype))

    def loss(
        self,
        batch: dict[str, jax.Array],
        epoch: Any,
        *,
        l_w: float,
        cl_weight: float = 0.01,
        temperature: float = 0.2,
        drop: float = 0.0,
        key: jax.Array,
    ) -> jax.Array:
        tables, views = self._states()
        id_states = losses.rows(tables, batch)  # of users, positives, negatives: [B, D] each
        rows = zip(*(losses.rows(view, batch) for view in views), strict=True)
        of_user, of_item = jax.random.split(key)
        kept = [
            self._kept(k, batch[name], drop)
            for k, name in ((of_user, "user"), (of_item, "pos"), (of_item, "neg"))
        ]
        sides = [self._side(*parts, drop) for parts in zip(rows, id_states, kept, strict=True)]
        return losses.with_sides(
            id_states, sides, l_w=l_w, cl_weight=cl_weight, temperature=temperature
        )

    def _states(self) -> tuple[base.Tables, list[base.Tables]]:
        """Return c and the views v_m and v_f.

        Each is a pair: users [U, D] and items [I, D].
        """
        adjacency, item = self.adjacency.get_value(), self.item[...]
        id_states = propagation.light_gcn(adjacency, self.user[...], item, self.layers)
        views = []
        for y, gate, similar in zip(self._denoised(), self.gates, self.similar, strict=True):
            items = item * jax.nn.sigmoid(gate(y))
            for _ in range(self.item_layers):
                items = graph.propagate(similar.get_value(), items)
            views.append((graph.propagate(adjacency, items), items))
        return id_states, views

    def _denoised(self) -> list[jax.Array]:
        """Return y_m and y_f, [I, D] each."""
        spectra: list[jax.Array] = []
        fused: Any = 1
        for content in self.contents:
            spectrum = jnp.fft.rfft(content(), axis=1, norm="ortho")  # [I, D // 2 + 1]
            spectra.append(spectrum)
            present = True if content.present is None else content.present[...][:, None]
            fused *= jnp.where(present, spectrum, 1)
        filters = jax.lax.complex(self.filters[..., 0], self.filters[..., 1])
        return [
            jnp.fft.irfft(x * w[None], n=self.item[...].shape[1], axis=1, norm="ortho")
            for x, w in zip([*spectra, fused], filters, strict=True)
        ]

    def _kept(self, key: jax.Array, nodes: jax.Array, rate: jax.Array | float) -> jax.Array:
        """Draw which gate entries of some nodes dropout keeps.

        The `nodes` [N] give bool [M + 1, N, D].
        """
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, nodes)
        shape, dtype = self.item[...].shape[1:], jnp.float32

        def of_view(n: int) -> jax.Array:
            view_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, n)
            return jax.vmap(lambda k: draws.uniform(k, shape, dtype))(view_keys) >= rate

        return jnp.stack([of_view(n) for n in range(len(self.prefers))])

    def _side(
        self,
        views: Sequence[jax.Array],
        own: jax.Array,
        kept: jax.Array | None = None,
        rate: jax.Array | float = 0,
    ) -> jax.Array:
        """Return t of some rows [N, D].

        `views` are their v_m and v_f, `own` their c, and `kept` what `_kept` drew.
        """
        *modal, fused = views
        shares = [
            jax.nn.softmax(query(jnp.tanh(hidden(fused))), axis=1)
            for hidden, query in zip(self.hidden, self.queries, strict=True)
        ]
        weighted = [share * view for share, view in zip(shares, modal, strict=True)]
        total: Any = 0
        for n, (view, prefer) in enumerate(zip([*weighted, fused], self.prefers, strict=True)):
            gate = jax.nn.sigmoid(prefer(own))
            if kept is not None:
                gate = jnp.where(kept[n], gate / (1 - rate), 0)
            total += gate * view
        return total / len(views)

    def tables(self) -> base.Tables:
        """Return users [U, D] and items [I, D]."""
        id_states, views = self._states()
        pairs = zip(id_states, zip(*views, strict=True), strict=True)
        users, items = (c + self._side(view, c) for c, view in pairs)
        return users, items

    def scores(self, tables: base.Tables, batch: dict[str, jax.Array]) -> jax.Array:
        return tables[0][batch["user"]] @ tables[1].T  # [B, I]


def strongest(graphs: Sequence[sp.csr_matrix]) -> sp.csr_matrix:
    """Return all edges of the graphs, each with its largest weight.

    A missing edge does not count as a weight of zero.
    """
    entries = [matrix.tocoo() for matrix in graphs]
    rows, columns, values = (
        np.concatenate([getattr(e, part) for e in entries]) for part in ("row", "col", "data")
    )
    order = np.lexsort((-values, columns, rows))
    rows, columns, values = rows[order], columns[order], values[order]
    first = np.ones(len(rows), bool)
    first[1:] = (np.diff(rows) != 0) | (np.diff(columns) != 0)
    return sp.csr_matrix((values[first], (rows[first], columns[first])), shape=graphs[0].shape)
