"""Losses and penalties that recommenders share."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.ops import contrastive
from mmjax.recommenders import base

LOSSES = ("softplus", "offset")
PENALTIES = ("squares", "norms")


def bpr(margin: jax.Array, kind: str, offset: float = 1e-10) -> jax.Array:
    """Return the mean loss of Bayesian personalised ranking.

    `margin` [B] is s(u, i) - s(u, j). `softplus` is -log sigmoid(margin) and stays exact for any
    margin (Elliot clips it at -80). `offset` is -log(offset + sigmoid(margin)): MMRec adds 1e-10,
    other codes more.
    """
    if kind == "softplus":
        return jax.nn.softplus(-margin).mean()
    return -jnp.log(offset + jax.nn.sigmoid(margin)).mean()


def penalty(rows: Iterable[jax.Array], kind: str) -> jax.Array:
    """Return the regulariser of gathered rows, divided by B.

    Each array is [B, D]; repeated rows are counted each time. `squares` is Elliot's half sum of
    squares over B. `norms` is MMRec's EmbLoss, the sum of the Frobenius norms (not squared) over B.
    B is the number of rows of the last array.
    """
    rows = list(rows)
    if kind == "squares":
        total: Any = sum(0.5 * jnp.square(x).sum() for x in rows)
    else:
        total = sum(jnp.sqrt(jnp.square(x).sum()) for x in rows)
    return total / rows[-1].shape[0]


def margin(tables: base.Tables, batch: dict[str, jax.Array]) -> jax.Array:
    """Return s(u, i) - s(u, j) of inner products, [B]."""
    users, items = tables
    return (users[batch["user"]] * (items[batch["pos"]] - items[batch["neg"]])).sum(axis=-1)


def rows(
    tables: base.Tables, batch: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the batch's users, positives and negatives, [B, D] each."""
    users, items = tables
    return users[batch["user"]], items[batch["pos"]], items[batch["neg"]]


def with_sides(
    own: Sequence[jax.Array],
    sides: Sequence[jax.Array],
    *,
    l_w: jax.Array | float,
    cl_weight: jax.Array | float,
    temperature: jax.Array | float,
) -> jax.Array:
    """Return the loss of MGCN and SMORE.

    BPR (softplus) of c + t, l_w times the `squares` penalty of c + t, and cl_weight times
    [NCE(t_i, c_i) + NCE(t_u, c_u)], in-batch InfoNCE of the positives and of the users.

    Args:
      own: c, rows [B, D] of the batch's users, positives and negatives.
      sides: t, rows in the same order.
      l_w: weight of the penalty.
      cl_weight: weight of the contrast.
      temperature: divides the cosines of the contrast.
    """
    user, pos, neg = final = [c + t for c, t in zip(own, sides, strict=True)]
    contrast = sum(contrastive.info_nce(sides[n], own[n], temperature) for n in (1, 0))
    ranking = bpr((user * (pos - neg)).sum(axis=-1), "softplus")
    return ranking + l_w * penalty(final, "squares") + cl_weight * contrast
