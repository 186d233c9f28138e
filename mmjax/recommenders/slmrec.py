"""SLMRec: one LightGCN per modality and one of ids, fused."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.ops import contrastive, graph
from mmjax.ops.normalize import unit
from mmjax.parallel.lazy_features import by_rows
from mmjax.recommenders import base
from mmjax.recommenders.layers import dense, initializers, projection


class SLMRec(nnx.Module):
    """SLMRec: fused modality towers with a self-supervised contrast.

    Tao et al., TMM 2022, task FAC: s = <u, i>, u = W_u [z_u^0 | ... | z_u^M] + b_u, i likewise.

    z^m are LightGCN's states of tower m. All towers start from one user table; the items start from
    their id embeddings (m = 0) or from x_m = W_m f_m + b_m, f_m the modality's features made unit,
    frozen. With CE(X, Y) = -log softmax of X Y^T at its diagonal, mean over the pairs of a batch,

        loss = CE(n(u) / temperature, n(i)) + ssl_weight sum_k CE(y_k / ssl_temperature, H_m z_i^m),

    n making rows unit, y_0 = z_i^0, y_k = G_k y_(k-1) + g_k: "fine to coarse". Level k > 0 is
    compared with the k-th modality m, in their order; the last level has half the width. As in the
    paper for three modalities, and in MMRec for two: there a level without a modality lies before
    the last. One modality has one level, of full width. An item without a modality takes no part in
    its comparison, but is one of the others that it distinguishes from.

    MMRec's scores are sigma(s) of the last batch's tables. Here they are of the trained tables, and
    sigma, which in float32 ties all large s, is the option `sigmoid`. Its Adam has a weight decay
    of 1e-4; its `reg` has no effect, its g_a_iva and the biases of its H_m no gradient: they are
    not here. Its FD and FM tasks read settings that it does not have.
    """

    def __init__(
        self,
        catalog: base.Catalog,
        *,
        dim: int,
        layers: int = 3,
        sigmoid: bool = False,
        eps: float = 1e-8,
        rngs: nnx.Rngs,
    ):
        self.layers, self.sigmoid = layers, sigmoid

        def table(count: int) -> jax.Array:
            return initializers.init_table("xavier_uniform", rngs.params(), (count, dim))

        self.user, self.item = nnx.Param(table(catalog.n_users)), nnx.Param(table(catalog.n_items))
        count = len(catalog.modalities())
        features = {k: by_rows(_unit, x) for k, x in catalog.features.items()}
        catalog = dataclasses.replace(catalog, features=features)
        self.contents = projection.contents(catalog, dim, init="xavier_uniform", rngs=rngs)
        linear = functools.partial(dense.linear, init="xavier_uniform", rngs=rngs)
        self.fuse_users = linear((count + 1) * dim, dim)
        self.fuse_items = linear((count + 1) * dim, dim)
        # The modality of each level; None where it has none.
        self.of_level = (0,) if count == 1 else (0, *(range(1, count - 1) or (None,)), count - 1)
        widths = [dim] * len(self.of_level)
        widths[1:] = widths[1:-1] + [dim // 2] * (count > 1)
        self.steps = nnx.List([linear(dim, width) for width in widths])
        compared = zip(self.of_level, widths, strict=True)
        # A bias of the heads would cancel in the softmax.
        self.heads = nnx.List(
            [linear(dim, width, bias=False) for m, width in compared if m is not None]
        )
        train = (catalog.train_user, catalog.train_item, catalog.shape)
        dtype = self.user[...].dtype
        self.graph = base.Frozen(graph.bipartite(*train, eps=eps, dtype=dtype))

    def loss(
        self,
        batch: dict[str, jax.Array],
        epoch: Any,
        *,
        ssl_weight: float = 0.1,
        temperature: float = 0.2,
        ssl_temperature: float = 0.5,
        key: Any,
    ) -> jax.Array:
        users, items = self._states()
        user, item = users[batch["user"]], items[batch["pos"]]  # [B, (M + 1) D]
        total = contrastive.info_nce(self.fuse_users(user), self.fuse_items(item), temperature)
        y, *towers = jnp.split(item, len(self.contents) + 1, axis=1)
        for step, modality in zip(self.steps, self.of_level, strict=True):
            y = step(y)
            if modality is None:
                continue
            present = self.contents[modality].weight_of(batch["pos"])
            projected, rows = self.heads[modality](towers[modality]), jnp.arange(len(present))
            total += contrastive.cross_entropy(
                y / ssl_temperature, projected, rows, ssl_weight * present / len(present)
            )
        return total

    def _states(self) -> base.Tables:
        """Return all towers side by side.

        They are users [U, (M + 1) D] and items [I, (M + 1) D]. Propagation is linear: what starts
        from the users, the same in every tower, is propagated once, and what starts from the items,
        of all towers at once; each of them is computed only on the side where it is nonzero.
        """
        adjacency = self.graph.get_value()
        starts = [self.item[...]] + [content() for content in self.contents]
        of_users, to_items = self._spread(adjacency.flip(), self.user[...])
        of_items, to_users = self._spread(adjacency, jnp.concatenate(starts, axis=1))
        of_users, to_items = (jnp.tile(x, (1, len(starts))) for x in (of_users, to_items))
        count = self.layers + 1
        return (of_users + to_users) / count, (of_items + to_items) / count

    def _spread(self, adjacency: graph.Graph, x: jax.Array) -> base.Tables:
        """Return the sums of states 0..L that start on one side.

        x is the start of one side; the other side starts from zeros. The sums are those of the side
        of x, then those of the other.
        """
        start_side, other_side = x, jnp.zeros((adjacency.shape[0], x.shape[1]), x.dtype)
        for layer in range(self.layers):
            x = graph.propagate(adjacency, x)
            start_side, other_side = (
                (start_side + x, other_side) if layer % 2 else (start_side, other_side + x)
            )
            adjacency = adjacency.flip()
        return start_side, other_side

    def tables(self) -> base.Tables:
        """Return users [U, D] and items [I, D]."""
        users, items = self._states()
        return self.fuse_users(users), self.fuse_items(items)

    def scores(self, tables: base.Tables, batch: dict[str, jax.Array]) -> jax.Array:
        scores = tables[0][batch["user"]] @ tables[1].T  # [B, I]
        return jax.nn.sigmoid(scores) if self.sigmoid else scores


def _unit(features: jax.Array) -> jax.Array:
    wide = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    return unit(wide).astype(features.dtype)
