"""VBPR: matrix factorisation with a second space for item content."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.core.names import choice
from mmjax.ops.normalize import unit
from mmjax.recommenders import base, losses
from mmjax.recommenders.layers import initializers, projection


class VBPR(nnx.Module):
    """VBPR: matrix factorisation with a second space for content.

    He and McAuley, AAAI 2016: s(u, i) = <g_u, g_i> + <t_u, p_i>, p_i = W f_i + b.

    f_i are the frozen features of all modalities side by side; where an item has none, p = 0. As in
    both toolboxes, and unlike the paper, there is no item or visual bias. The user table is
    [U, 2D], (g | t); an item row is (g_i | p_i).

    Elliot: `normalize` makes p unit vectors; softplus, half squares; t drawn from N(0, 1) by a slip
    of its code (`content_init="normal"`), Xavier-uniform in its later repository. MMRec: no
    normalisation, offset loss, Frobenius norms, the user table drawn Xavier-uniform as one
    (`content_init="joint"`), W Xavier-normal with zero bias.
    """

    def __init__(
        self,
        catalog: base.Catalog,
        *,
        dim: int,
        normalize: bool = True,
        ranking_loss: str = "softplus",
        regulariser: str = "squares",
        content_init: str = "xavier_uniform",
        projection_init: str = "linear",
        rngs: nnx.Rngs,
    ):
        self.normalize = normalize
        self.ranking_loss = choice("ranking_loss", ranking_loss, losses.LOSSES)
        self.regulariser = choice("regulariser", regulariser, losses.PENALTIES)
        users = catalog.n_users
        if content_init == "joint":
            table = initializers.init_table("xavier_uniform", rngs.params(), (users, 2 * dim))
        else:
            kinds = ("xavier_uniform", content_init)
            halves = [initializers.init_table(kind, rngs.params(), (users, dim)) for kind in kinds]
            table = jnp.concatenate(halves, axis=1)
        self.user = nnx.Param(table)  # [U, 2D]
        self.item = nnx.Param(
            initializers.init_table("xavier_uniform", rngs.params(), (catalog.n_items, dim))
        )
        bias = "zeros" if projection_init == "xavier_normal" else "linear"
        self.content = projection.joined(catalog, dim, init=projection_init, bias=bias, rngs=rngs)

    def loss(self, batch: dict[str, jax.Array], epoch: Any, *, l_w: float, key: Any) -> jax.Array:
        user = self.user[...][batch["user"]]  # [B, 2D]
        both = jnp.concatenate([batch["pos"], batch["neg"]])
        pos, neg = jnp.split(self._items(both), 2)  # [B, 2D] each
        margin = (user * (pos - neg)).sum(-1)  # [B]
        reg = losses.penalty((user, pos, neg), self.regulariser)
        return losses.bpr(margin, self.ranking_loss) + l_w * reg

    def _items(self, rows: jax.Array | None = None) -> jax.Array:
        """Return (g | p), [N, 2D], of some items or all."""
        item, content = self.item[...], self.content(rows)
        content = unit(content) if self.normalize else content
        return jnp.concatenate([item if rows is None else item[rows], content], axis=1)

    def tables(self) -> tuple[jax.Array, jax.Array]:
        return self.user[...], self._items()

    def scores(self, tables: tuple[jax.Array, jax.Array], batch: dict[str, jax.Array]) -> jax.Array:
        users, items = tables
        return users[batch["user"]] @ items.T  # [B, I]
