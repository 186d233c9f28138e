"""Ranking metrics of top-k lists: accuracy and list composition.

Accuracy is computed per user on device, composition on the host. N users, K the longest cutoff.
Definitions follow trec_eval where it has them (nDCG, AP over all relevant items, P, Recall,
reciprocal rank); each departure is an argument.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

ACCURACY = ("recall", "precision", "ndcg", "hr", "map", "mrr")
BEYOND = ("coverage", "gini", "efd", "epc", "aplt", "arp")
SHORT_HEAD = 0.8  # share of interactions; the most popular items that draw it are the short head


def order(name: str) -> tuple[int, int]:
    """Return the sort key of "metric@k": by metric, then by cutoff."""
    metric, cutoff = name.split("@")
    return (*ACCURACY, *BEYOND).index(metric), int(cutoff)


def discount(length: int) -> np.ndarray:
    """Return the discounts 1 / log2(rank + 1) for ranks 1..length, [length]."""
    return 1 / np.log2(np.arange(2, length + 2))


def accuracy(
    gain: jax.Array,
    ideal: jax.Array,
    relevant: jax.Array,
    cutoffs: Sequence[int],
    *,
    map_capped: bool = False,
) -> dict[str, jax.Array]:
    """Compute per-user accuracy at every cutoff.

    Args:
      gain: [N, K] gain of the item at each rank, 0 where it is not relevant.
      ideal: [N, K] the user's own gains in falling order, 0 beyond them.
      relevant: [N] number of relevant items, at least 1.
      cutoffs: each at most K.
      map_capped: AP over min(relevant, cutoff) instead of all relevant items, as MMRec.

    Returns:
      `{"recall@20": [N], ...}`.
    """
    hit = (gain > 0).astype(jnp.float32)
    rank = jnp.arange(1, gain.shape[1] + 1, dtype=jnp.float32)[None]
    weight = jnp.asarray(discount(gain.shape[1]), jnp.float32)[None]
    hits = jnp.cumsum(hit, axis=1)
    dcg, ideal_dcg = (jnp.cumsum(g * weight, axis=1) for g in (gain, ideal))
    precisions = jnp.cumsum(hit * hits / rank, axis=1)
    first = jnp.max(hit / rank, axis=1, keepdims=True)  # reciprocal rank of the first hit
    out = {}
    for k in cutoffs:
        n_hits, normalizer = hits[:, k - 1], jnp.minimum(relevant, k) if map_capped else relevant
        out[f"recall@{k}"] = n_hits / relevant
        out[f"precision@{k}"] = n_hits / k
        out[f"ndcg@{k}"] = dcg[:, k - 1] / ideal_dcg[:, k - 1]
        out[f"hr@{k}"] = (n_hits > 0).astype(jnp.float32)
        out[f"map@{k}"] = precisions[:, k - 1] / normalizer
        out[f"mrr@{k}"] = jnp.where(first[:, 0] * k >= 1, first[:, 0], 0.0)
    return out


def beyond_accuracy(
    ranked: np.ndarray,
    hit: np.ndarray,
    popularity: np.ndarray,
    n_users: int,
    cutoffs: Sequence[int],
) -> dict[str, np.ndarray | float]:
    """Compute beyond-accuracy metrics of the lists at every cutoff.

    coverage is the share of the catalogue in any list; gini the inequality of how often items are
    shown (0 all alike; Elliot prints one minus it); arp the mean popularity of listed items; aplt
    the share of them outside the short head (Abdollahpouri et al., FLAIRS 2019). epc and efd are
    the discounted novelty of relevant hits (Vargas and Castells, RecSys 2011), with novelty
    1 - pop / users, and -log2(pop / all interactions); an item without interactions counts as one.

    Args:
      ranked: [N, K] item ids, -1 where a user has fewer candidates.
      hit: [N, K] True where the item is relevant.
      popularity: [I] train interactions of each item.
      n_users: users in train.

    Returns:
      Per-user arrays [N] by metric@k and, for coverage and gini, one number.
    """
    listed = ranked >= 0
    item = np.where(listed, ranked, 0)
    floor = np.maximum(popularity, 1)
    novelty = {"epc": 1 - floor / n_users, "efd": -np.log2(floor / max(1, popularity.sum()))}
    by_popularity = np.argsort(-popularity, kind="stable")
    before = np.cumsum(popularity[by_popularity]) - popularity[by_popularity]
    tail = np.zeros(len(popularity), bool)
    tail[by_popularity[before >= SHORT_HEAD * popularity.sum()]] = True
    weight = discount(ranked.shape[1])
    out: dict[str, np.ndarray | float] = {}
    for k in cutoffs:
        items, shown = item[:, :k], listed[:, :k]
        length = np.maximum(shown.sum(1), 1)
        exposure = np.bincount(items[shown], minlength=len(popularity))
        out[f"coverage@{k}"] = float((exposure > 0).mean())
        out[f"gini@{k}"] = gini(exposure)
        for name, value in novelty.items():
            gained = (value[items] * hit[:, :k] * weight[:k]).sum(1)
            out[f"{name}@{k}"] = gained / (shown * weight[:k]).sum(1).clip(1e-12)
        out[f"aplt@{k}"] = (tail[items] & shown).sum(1) / length
        out[f"arp@{k}"] = (popularity[items] * shown).sum(1) / length
    return out


def gini(counts: np.ndarray) -> float:
    """Compute the Gini coefficient of non-negative counts.

    It is 0 when all are equal, 1 - 1/n when one has all.
    """
    total, n = counts.sum(), len(counts)
    if total == 0:
        return 0.0
    ranks = np.arange(1, n + 1)
    return float(((2 * ranks - n - 1) * np.sort(counts)).sum() / (n * total))
