"""LATTICE: LightGCN's items enriched over learned and frozen item graphs."""

from typing import Any

import jax
from flax import nnx

from mmjax.core.names import choice
from mmjax.ops.normalize import unit
from mmjax.recommenders import base, losses
from mmjax.recommenders.layers import initializers, item_graph


class LATTICE(nnx.Module):
    """LATTICE: LightGCN plus a latent item graph.

    Zhang et al., MM 2021: s = <e_u, e_i + n(h_i)>, h = S^L I, n making rows unit, L =
    `item_layers`.

    e is the mean of the states 0..L' of users and items over D^-1 (A + I), L' = `layers`; in h, I
    are the items' id embeddings. S mixes `skip` of the features' frozen cosine graphs with 1 - skip
    of the graph of the projected features x_m = F_m W_m + b, F_m trained as well, modalities
    weighted by a trained softmax: see `item_graph.ItemGraph`. The loss is BPR (softplus) +
    l_w/2 sum ||.||^2 / B of the final rows of the batch.

    S is built from the parameters at the start of an epoch and for evaluation. The gradient flows
    through its weights at the epoch's first step; at the others S is a constant, and F_m, W_m, b
    and w get zero gradients, under which Adam's momentum keeps moving them: so did the torch (1.5,
    1.11) that the papers' numbers come from. Torch 2 gives no gradient there at all, and its Adam
    leaves them where they are until the next epoch, as the dumped steps do.

    S is sparse and no I x I matrix is ever held (MMRec holds several). MMRec: the defaults. Elliot:
    D^-1 (A + I) D^-1 between users and items (`norm="both"`: its Laplacian's exponent is 1), states
    1..L' made unit (`normalize`), diagonals set to 1 (`self_one`), `skip` .7. MMRec's `ngcf` and
    `mf` backbones are not here: set `layers=0` for mf. An item without a modality has no edges of
    it.
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
        norm: str = "left",
        normalize: bool = False,
        self_one: bool = False,
        trainable_features: bool = True,
        rngs: nnx.Rngs,
    ):
        choice("norm", norm, ("left", "both"))
        self.layers, self.item_layers, self.normalize = layers, item_layers, normalize

        def table(count: int) -> jax.Array:
            return initializers.init_table("xavier_uniform", rngs.params(), (count, dim))

        self.user, self.item = nnx.Param(table(catalog.n_users)), nnx.Param(table(catalog.n_items))
        self.similar = item_graph.ItemGraph(
            catalog,
            catalog.modalities(),
            dim,
            top_k=top_k,
            skip=skip,
            self_one=self_one,
            trainable=trainable_features,
            rngs=rngs,
        )
        self.graph = base.Frozen(item_graph.looped(catalog, norm, self.user[...].dtype))

    def epoch(self, key: Any) -> item_graph.Kept:
        """Build the item graph."""
        return self.similar.build()

    def loss(
        self, batch: dict[str, jax.Array], epoch: item_graph.Kept, *, l_w: float, key: Any
    ) -> jax.Array:
        user, pos, neg = losses.rows(self._tables(epoch, batch["step"] == 0), batch)
        margin = (user * (pos - neg)).sum(axis=-1)
        return losses.bpr(margin, "softplus") + l_w * losses.penalty((user, pos, neg), "squares")

    def _tables(self, kept: item_graph.Kept, first: jax.Array | bool) -> base.Tables:
        item = self.item[...]
        users, items = item_graph.walk(
            self.graph.get_value(), self.user[...], item, self.layers, self.normalize
        )
        similar = self.similar.propagate(kept, first, item, self.item_layers)
        return users, items + unit(similar)

    def tables(self) -> base.Tables:
        """Return users and items on a new item graph.

        They are [U, D] and [I, D].
        """
        return self._tables(self.similar.build(), False)

    def scores(self, tables: base.Tables, batch: dict[str, jax.Array]) -> jax.Array:
        return tables[0][batch["user"]] @ tables[1].T  # [B, I]
