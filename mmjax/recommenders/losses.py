"""Losses that recommenders share."""

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp

from mmjax.ops import contrastive
from mmjax.recommenders import base

LOSSES = ("softplus", "offset")
PENALTIES = ("squares", "norms")


def bpr(margin: jax.Array, kind: str, offset: float = 1e-10) -> jax.Array:
    """Bayesian personalised ranking, mean over the batch.

    `softplus` is -log sigmoid(margin) and stays exact for any margin (Elliot clips it at -80);
    `offset` is MMRec's -log(1e-10 + sigmoid(margin)); others add more.
    """
    if kind == "softplus":
        return jax.nn.softplus(-margin).mean()
    return -jnp.log(offset + jax.nn.sigmoid(margin)).mean()


def penalty(rows: Iterable[jax.Array], kind: str) -> jax.Array:
    """Regulariser of gathered rows, each [B, D], repeated rows counted each time.

    `squares` is Elliot's half sum of squares over B; `norms` is MMRec's EmbLoss, the sum of the
    Frobenius norms (not squared) over B.
    """
    rows = list(rows)
    if kind == "squares":
        total = sum(0.5 * jnp.square(x).sum() for x in rows)
    else:
        total = sum(jnp.sqrt(jnp.square(x).sum()) for x in rows)
    return total / rows[-1].shape[0]


def margin(tables: base.Tables, batch: dict[str, jax.Array]) -> jax.Array:
    """s(u, i) - s(u, j) of inner products, [B]."""
    users, items = tables
    return (users[batch["user"]] * (items[batch["pos"]] - items[batch["neg"]])).sum(axis=-1)


def rows(
    tables: base.Tables, batch: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rows [B, D] of the batch's users, positives and negatives."""
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
    """MGCN's loss, and SMORE's: BPR of c + t and a penalty on it, and c and t told from others'.

    `own` c and `sides` t are rows [B, D] of the batch's users, positives and negatives.
    """
    user, pos, neg = final = [c + t for c, t in zip(own, sides, strict=True)]
    apart = sum(contrastive.info_nce(sides[n], own[n], temperature) for n in (1, 0))
    ranking = bpr((user * (pos - neg)).sum(axis=-1), "softplus")
    return ranking + l_w * penalty(final, "squares") + cl_weight * apart
