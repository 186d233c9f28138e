"""One-hot attributes of items from the values of slots.

The steps are those of arXiv 2508.04571. A value's keyword is lower-cased and lemmatised. Keywords
with similar sentence embeddings are merged, by average linkage on cosine distance. Each cluster is
named by its most common member. Of each slot the most common ones stay; all others are `other`.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import simplemma
from scipy.cluster import hierarchy

from mmjax.core.errors import InputError

Embed = Callable[[list[str]], np.ndarray]  # n keywords -> [n, F]
OTHER = "other"
MOST = 20_000  # keywords to cluster: their distances take MOST^2 / 2 x 8 bytes, 1.6 GB, twice
BLOCK = 256  # rows of distances at a time
# Endings of adjectives and gerunds, which a lemmatiser that knows no context takes for verbs.
NO_NOUN = ("ed", "ing", "er", "est")


class Attributes(NamedTuple):
    """Attributes of I items; an item without any known value has none."""

    slots: list[str]  # [S]
    columns: list[str]  # [A] as `Slot=keyword`, sorted by keyword within a slot, `other` last
    hot: np.ndarray  # [I, A] bool, one in each slot
    keywords: list[tuple[str, ...]]  # [I][S] the keyword that stands for a value; () without any
    distinct: int  # keywords before the clustering
    clusters: int


def keyword(value: str | None) -> str | None:
    """Return the keyword of a value, lower-cased and lemmatised.

    Punctuation around words is removed, and each word becomes its lemma. Of a value with commas or
    semicolons the first part counts. (The papers' code splits a whole answer at commas after it has
    dropped the labels, so that one such value moves all later ones to the next slot.)

    Lemmas come from simplemma, whose dictionaries are part of its package. The papers use WordNet's
    lemmatiser, which takes a whole keyword for one noun: it turns `potatoes` into `potato`, but
    leaves `mashed potatoes`, a phrase that it does not know. Here every word becomes its lemma. In
    both, adjectives and gerunds (`baked`, `seasoning`) stay. A few words differ: for `leaves`
    simplemma gives `leave`, WordNet `leaf`.
    """
    first = re.split(r"[,;]", value or "")[0].casefold()
    words = [word.strip(" .'\"*()[]{}:!?") for word in first.split()]
    return " ".join(map(_lemma, filter(None, words))) or None


def _lemma(word: str) -> str:
    return word if word.endswith(NO_NOUN) else simplemma.lemmatize(word, lang="en").casefold()


def clusters(vectors: np.ndarray, threshold: float) -> np.ndarray:
    """Cluster rows [n, F] by average linkage on cosine distance.

    Two clusters merge where their mean distance is below `threshold`, as in scikit-learn's
    AgglomerativeClustering with `distance_threshold` (SciPy's own cut also merges at equality).
    Time and memory grow with n^2.

    Returns:
      The cluster number of each row, [n].
    """
    count = len(vectors)
    if count < 2:
        return np.ones(count, np.int32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors.astype(np.float64) / np.maximum(norms, 1e-12)  # [n, F]
    distances = np.empty(count * (count - 1) // 2)  # of pairs i < j, row after row
    end = 0
    for start in range(0, count, BLOCK):
        block = np.clip(1 - unit[start : start + BLOCK] @ unit.T, 0, 2)  # [BLOCK, n]
        for row, values in enumerate(block, start=start):
            begin, end = end, end + count - row - 1
            distances[begin:end] = values[row + 1 :]
    tree = hierarchy.linkage(distances, method="average")
    return hierarchy.fcluster(tree, np.nextafter(threshold, -np.inf), criterion="distance")


def representatives(
    counts: Mapping[str, int], embed: Embed, *, threshold: float, min_count: int = 1
) -> dict[str, str]:
    """Map each keyword to the most common one of its cluster.

    Of equally common ones the first by name counts.

    Args:
      counts: how often each keyword occurs; those below `min_count` are left out.

    Raises:
      InputError: more keywords than can be clustered.
    """
    words = sorted(word for word, count in counts.items() if count >= min_count)
    if len(words) > MOST:
        raise InputError(
            f"{len(words):,} distinct keywords are too many to cluster (at most {MOST:,}); leave "
            f"rare ones out by --min_count={min_count + 1} or more"
        )
    if not words:
        return {}
    labels = clusters(embed(words), threshold)
    best: dict[int, str] = {}
    for word, cluster in zip(words, labels, strict=True):
        if cluster not in best or counts[word] > counts[best[cluster]]:
            best[cluster] = word
    return {word: best[cluster] for word, cluster in zip(words, labels, strict=True)}


def one_hot(
    values: Sequence[Sequence[str | None]],
    slots: Sequence[str],
    embed: Embed,
    *,
    threshold: float = 0.45,
    top: int = 50,
    min_count: int = 1,
) -> Attributes:
    """Build one-hot attributes of items from their slots' values.

    The keywords of all slots are clustered in one go. Every slot has at most `top` columns and
    `other`, which is also the attribute of an unknown value.

    Args:
      values: [I][S], None where a value is not known.
      slots: names of the S slots.
      embed: sentence embeddings of keywords, called once.
      threshold: of cosine distance, see `clusters`.
      top: most columns of a slot, besides `other`.
      min_count: a rarer keyword is `other`.

    Raises:
      InputError: too many keywords, or not one.
    """
    words = [[keyword(value) for value in row] for row in values]
    counts = Counter(word for row in words for word in row if word)
    if not counts:
        raise InputError("not one value of a slot was found in the answers; check --slots")
    representative = representatives(counts, embed, threshold=threshold, min_count=min_count)
    columns, parts, chosen = [], [], []
    for slot, name in enumerate(slots):
        slot_words = [representative.get(row[slot] or "", OTHER) for row in words]
        common = Counter(word for word in slot_words if word != OTHER)
        kept = sorted(sorted(common), key=common.__getitem__, reverse=True)[:top]
        kept = [*sorted(kept), OTHER]
        column_of = {word: column for column, word in enumerate(kept)}
        codes = np.array([column_of.get(word, len(kept) - 1) for word in slot_words])
        parts.append(codes[:, None] == np.arange(len(kept))[None])
        columns += [f"{name}={word}" for word in kept]
        chosen.append([kept[code] for code in codes])
    known = np.array([any(row) for row in words])
    rows = zip(known, zip(*chosen, strict=True), strict=True)
    return Attributes(
        slots=list(slots),
        columns=columns,
        hot=np.hstack(parts) & known[:, None],
        keywords=[row if has_value else () for has_value, row in rows],
        distinct=len(counts),
        clusters=len(set(representative.values())),
    )
