"""PGL: training on a principal subgraph, evaluation on the whole graph."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from flax import nnx
from scipy.sparse.linalg import svds

from mmjax.core.errors import InputError
from mmjax.core.names import choice
from mmjax.ops import contrastive, draws, graph, weighted_graph
from mmjax.ops.normalize import unit
from mmjax.recommenders import base, losses
from mmjax.recommenders.layers import initializers, projection, propagation

ENTRIES = 1 << 22  # of the product of singular vectors at a time


class PGL(nnx.Module):
    """PGL: content propagated over a principal user-item subgraph.

    Yu et al., AAAI 2025: s = <e_u, e_i + h_i>, e LightGCN's mean of states 0..L, h = S^l x, l =
    `item_layers`.

    There are no item embeddings: x = (n(x_1) | ... | n(x_M)) with x_m = F_m W_m + b made unit
    vectors and F_m trained as well, beside one table of users for each modality. S is FREEDOM's,
    sum_m c_m S_m over the `top_k` nearest, every edge 1/k, c_m by `weights`, name by name (the
    paper: .1 for images); the rest is shared by the other modalities. The loss is

        BPR (softplus) + cl_weight [NCE(drop(e_u), drop(e_u)) + NCE(drop(y_i), drop(y_i))] / 2,

    y = e + h, in-batch, two masks of rate `drop` each. Evaluation takes the normalised graph G =
    D^-1/2 R D^-1/2; training a principal subgraph of it,

        local   floor(keep E) of its edges, at least one, drawn anew each epoch without
                replacement in proportion to their weight 1 / sqrt(d_u d_i), and normalised again;
        global  sum_{j <= q} s_j s_{k-q+j} a_j b_j^T of G's largest k = D // 2 singular triplets
                (s_j, a_j, b_j) with q = k // 4, where entries smaller than `threshold` in absolute
                value are dropped.

    MMRec decomposes the adjacency of users and items as one matrix, where each s_j occurs twice,
    into D triplets, and makes their product dense; in exact arithmetic the blocks of users with
    users and items with items are zero and those beside them are these. Here it is computed by
    blocks of rows: at most sum_j (s_j s_{k-q+j} / threshold)^2 entries are left, whatever the
    number of items. They may be negative. MMRec needs two modalities.
    """

    def __init__(
        self,
        catalog: base.Catalog,
        *,
        dim: int,
        layers: int = 2,
        item_layers: int = 1,
        top_k: int = 10,
        weights: Mapping[str, float] | None = None,
        subgraph: str = "local",
        keep: float = 0.3,
        threshold: float = 1e-3,
        trainable_features: bool = True,
        eps: float = 1e-7,
        rngs: nnx.Rngs,
    ):
        choice("subgraph", subgraph, ("local", "global"))
        if not 0 < keep <= 1:
            raise InputError(f"keep={keep} must be more than 0 and at most 1")
        self.layers, self.item_layers, self.eps = layers, item_layers, eps
        names, train = catalog.modalities(), (catalog.train_user, catalog.train_item, catalog.shape)
        shares, principal_matrix = projection.shares(names, weights or {}, 1.0), None
        if subgraph == "global":
            matrix = graph.bipartite(*train, eps=eps, dtype=np.float64).forward
            matrix = sp.csr_matrix((matrix.values, matrix.columns, matrix.starts), catalog.shape)
            principal_matrix = principal(matrix, dim // 2, threshold)
        size = catalog.n_users, dim
        users = [initializers.init_table("xavier_uniform", rngs.params(), size) for _ in names]
        self.user = nnx.Param(jnp.concatenate(users, axis=1))  # [U, M D]
        self.contents = projection.contents(catalog, dim, trainable=trainable_features, rngs=rngs)
        dtype = self.user[...].dtype
        self.similar = base.Frozen(propagation.similar(catalog, shares, top_k, eps, dtype))
        self.whole = base.Frozen(weighted_graph.pattern(*train))
        self.kept = max(int(keep * len(self.whole.get_value().forward.rows)), 1)
        self.principal = (
            None
            if principal_matrix is None
            else base.Frozen(graph.from_scipy(principal_matrix, dtype))
        )

    def epoch(self, key: jax.Array) -> graph.Graph:
        """Return the training subgraph [U, I]."""
        if self.principal is not None:
            return self.principal.get_value()
        dtype = self.user[...].dtype
        return propagation.pruned(key, self.whole.get_value(), self.kept, self.eps, dtype)

    def loss(
        self,
        batch: dict[str, jax.Array],
        epoch: graph.Graph,
        *,
        cl_weight: float = 0.05,
        temperature: float = 0.2,
        drop: float = 0.2,
        key: jax.Array,
    ) -> jax.Array:
        tables = self._tables(epoch)
        keys = jax.random.split(key, (2, 2))
        total = jax.nn.softplus(-losses.margin(tables, batch)).mean()
        for of_views, rows in zip(keys, losses.rows(tables, batch), strict=False):
            one, other = (draws.dropout(k, rows, drop) for k in of_views)
            total += 0.5 * cl_weight * contrastive.info_nce(one, other, temperature)
        return total

    def _tables(self, adjacency: graph.Graph) -> base.Tables:
        item = jnp.concatenate([unit(content()) for content in self.contents], axis=1)
        users, items = propagation.light_gcn(adjacency, self.user[...], item, self.layers)
        for _ in range(self.item_layers):
            item = graph.propagate(self.similar.get_value(), item)
        return users, items + item

    def tables(self) -> base.Tables:
        """Return users and items on the whole graph.

        They are [U, M D] and [I, M D].
        """
        return self._tables(
            propagation.normalised(self.whole.get_value(), self.eps, self.user[...].dtype)
        )

    def scores(self, tables: base.Tables, batch: dict[str, jax.Array]) -> jax.Array:
        return tables[0][batch["user"]] @ tables[1].T  # [B, I]


def principal(matrix: sp.csr_matrix, rank: int, threshold: float) -> sp.csr_matrix:
    """Return the principal subgraph [U, I] of a normalised matrix.

    It is the product of the first quarter of the `rank` largest singular triplets, each weighted by
    its own and by the last quarter's singular value. Entries smaller than `threshold` in absolute
    value are dropped.

    Raises:
      InputError: a quarter of the singular values is less than one.
    """
    rank = min(rank, min(matrix.shape) - 1)
    quarter = rank // 4
    if not quarter:
        raise InputError(
            f"a subgraph of {rank} singular values has no quarter of them: it needs dim of 8 or "
            "more and more than 4 users and items; take subgraph=local"
        )
    start = np.random.default_rng(0).normal(size=min(matrix.shape))
    left, values, right = svds(matrix, rank, v0=start)  # ascending
    left, values, right = left[:, ::-1], values[::-1], right[::-1]
    left = left[:, :quarter] * values[:quarter] * values[-quarter:]
    right, blocks = right[:quarter], []
    for rows in np.array_split(left, -(-left.shape[0] * right.shape[1] // ENTRIES)):
        block = rows @ right
        blocks.append(sp.csr_matrix(np.where(np.abs(block) >= threshold, block, 0)))
    return sp.vstack(blocks).tocsr()
