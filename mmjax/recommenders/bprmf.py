"""BPRMF: matrix factorisation trained by Bayesian personalised ranking."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.core.names import choice
from mmjax.recommenders import base, losses
from mmjax.recommenders.layers import initializers


class BPRMF(nnx.Module):
    """BPRMF: matrix factorisation with item biases.

    Rendle et al., UAI 2009: s(u, i) = b_i + <g_u, g_i>; BPR over (u, i, j).

    Elliot's `BPRMF_batch` has item biases and the penalty

        l_w (|g_u|^2 + |g_i|^2 + |g_j|^2) / 2B + l_b (|b_i|^2 + |b_j|^2 / 10) / 2,

    summed over the batch, the bias part not divided by B. MMRec's `BPR` has no biases, the `norms`
    penalty and the `offset` loss. `bias`, `regulariser`, `ranking_loss` and `init` choose between
    them.
    """

    def __init__(
        self,
        catalog: base.Catalog,
        *,
        dim: int,
        bias: bool = True,
        ranking_loss: str = "softplus",
        regulariser: str = "squares",
        init: str = "xavier_uniform",
        rngs: nnx.Rngs,
    ):
        self.ranking_loss = choice("ranking_loss", ranking_loss, losses.LOSSES)
        self.regulariser = choice("regulariser", regulariser, losses.PENALTIES)
        self.user = nnx.Param(initializers.init_table(init, rngs.params(), (catalog.n_users, dim)))
        self.item = nnx.Param(initializers.init_table(init, rngs.params(), (catalog.n_items, dim)))
        self.bias = nnx.Param(jnp.zeros(catalog.n_items)) if bias else None

    def loss(
        self, batch: dict[str, jax.Array], epoch: Any, *, l_w: float, l_b: float = 0.0, key: Any
    ) -> jax.Array:
        user = self.user[...][batch["user"]]  # [B, D]
        pos, neg = (self.item[...][batch[side]] for side in ("pos", "neg"))
        margin = (user * (pos - neg)).sum(-1)  # [B]
        reg = l_w * losses.penalty((user, pos, neg), self.regulariser)
        if self.bias is not None:
            b_pos, b_neg = (self.bias[...][batch[side]] for side in ("pos", "neg"))
            margin += b_pos - b_neg
            reg += 0.5 * l_b * (jnp.square(b_pos).sum() + jnp.square(b_neg).sum() / 10)
        return losses.bpr(margin, self.ranking_loss) + reg

    def tables(self) -> dict[str, jax.Array]:
        tables = {"user": self.user[...], "item": self.item[...]}
        return tables if self.bias is None else tables | {"bias": self.bias[...]}

    def scores(self, tables: dict[str, jax.Array], batch: dict[str, jax.Array]) -> jax.Array:
        scores = tables["user"][batch["user"]] @ tables["item"].T  # [B, I]
        return scores if self.bias is None else scores + tables["bias"][None]
