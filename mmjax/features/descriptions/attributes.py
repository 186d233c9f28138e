"""Values of slots to one-hot attributes: lemmas, clusters of like keywords, the commonest of each.

The steps are those of arXiv 2508.04571: a value's keyword is lower-cased and lemmatised; keywords
whose sentence embeddings are alike become one, by average linkage on cosine distance; each cluster
is called by its commonest member; of each slot the commonest ones stay, all others are `other`.
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
    """The attributes of I items; an item of which no value is known has none."""

    slots: list[str]  # [S]
    columns: list[str]  # [A] as `Slot=keyword`, sorted by keyword within a slot, `other` last
    hot: np.ndarray  # [I, A] bool, one in each slot
    keywords: list[tuple[str, ...]]  # [I][S] the keyword that stands for a value; () of no item
    distinct: int  # keywords before the clustering
    clusters: int


def keyword(value: str | None) -> str | None:
    """The keyword of a value: lower case, without punctuation around it, word by word a lemma.

    Of a value with commas the first part counts. (The papers' code splits a whole answer at commas
    after it has dropped the labels, so that one such value moves all after it to the next slot.)

    Lemmas come from simplemma, whose dictionaries lie in its package. The papers use WordNet's
    lemmatiser, which takes a keyword as a whole for one noun: it makes `potatoes` `potato` but
    leaves `mashed potatoes`, a phrase it does not know, as it is; here every word becomes its
    lemma. As there, adjectives and gerunds (`baked`, `seasoning`) stay. A few words differ:
    simplemma says `leave` of `leaves`, WordNet `leaf`.
    """
    first = re.split(r"[,;]", value or "")[0].casefold()
    words = [word.strip(" .'\"*()[]{}:!?") for word in first.split()]
    return " ".join(map(_lemma, filter(None, words))) or None


def _lemma(word: str) -> str:
    return word if word.endswith(NO_NOUN) else simplemma.lemmatize(word, lang="en").casefold()


def clusters(vectors: np.ndarray, threshold: float) -> np.ndarray:
    """Average-linkage clusters of rows [n, F] by cosine distance: a number each, [n].

    Two clusters merge where their mean distance is below `threshold`, as in scikit-learn's
    AgglomerativeClustering with `distance_threshold` (SciPy's own cut also merges at equality).
    Time and memory grow with n^2.
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
    """For each keyword the commonest one of its cluster; of equally common ones the first by name.

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
    found = clusters(embed(words), threshold)
    best: dict[int, str] = {}
    for word, cluster in zip(words, found, strict=True):
        if cluster not in best or counts[word] > counts[best[cluster]]:
            best[cluster] = word
    return {word: best[cluster] for word, cluster in zip(words, found, strict=True)}


def one_hot(
    values: Sequence[Sequence[str | None]],
    slots: Sequence[str],
    embed: Embed,
    *,
    threshold: float = 0.45,
    top: int = 50,
    min_count: int = 1,
) -> Attributes:
    """Attributes of items from the values [I][S] of their slots; None where a value is not known.

    All slots' keywords are clustered together. Every slot has at most `top` columns and `other`,
    which is also the attribute of a value that is not known.

    Args:
      embed: sentence embeddings of keywords, called once.
      threshold: of cosine distance, see `clusters`.
      min_count: a rarer keyword is `other`.

    Raises:
      InputError: too many keywords, or not one.
    """
    words = [[keyword(value) for value in row] for row in values]
    counts = Counter(word for row in words for word in row if word)
    if not counts:
        raise InputError("not one value of a slot was found in the answers; check --slots")
    named = representatives(counts, embed, threshold=threshold, min_count=min_count)
    columns, parts, chosen = [], [], []
    for slot, name in enumerate(slots):
        mine = [named.get(row[slot] or "", OTHER) for row in words]
        common = Counter(word for word in mine if word != OTHER)
        kept = sorted(sorted(common), key=common.__getitem__, reverse=True)[:top]
        kept = [*sorted(kept), OTHER]
        place = {word: column for column, word in enumerate(kept)}
        codes = np.array([place.get(word, len(kept) - 1) for word in mine])
        parts.append(codes[:, None] == np.arange(len(kept))[None])
        columns += [f"{name}={word}" for word in kept]
        chosen.append([kept[code] for code in codes])
    known = np.array([any(row) for row in words])
    rows = zip(known, zip(*chosen, strict=True), strict=True)
    return Attributes(
        slots=list(slots),
        columns=columns,
        hot=np.hstack(parts) & known[:, None],
        keywords=[row if there else () for there, row in rows],
        distinct=len(counts),
        clusters=len(set(named.values())),
    )
