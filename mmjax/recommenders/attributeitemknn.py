"""AttributeItemKNN: item neighbours by attributes and by interactions."""

import numpy as np
import scipy.sparse as sp
from flax import nnx

from mmjax.core.errors import InputError
from mmjax.core.names import choice
from mmjax.recommenders import base, itemknn

WEIGHTINGS = ("none", "tfidf", "bm25")


class AttributeItemKNN(itemknn.ItemKNN):
    """ItemKNN on attributes and interactions side by side.

    ItemKNN on M = (weight x attributes | R^T), [I, A + U]; s(u, i) = sum of r_uj w(j, i). The
    hybrid of arXiv 2508.04571 (upstream Elliot's model of this name has no R^T). Attributes are the
    features of all modalities side by side, [I, A]: of a store of scripts/describe.py, one-hot
    rows. w compares two rows of M, see ItemKNN. `feature_weighting` changes M first, an item being
    a document of N = I and a column a term that df items have:

      tfidf   sqrt(v) ln(N / (1 + df))
      bm25    ln((N - df + 0.5) / (df + 0.5)) v (k1 + 1) / (v + k1 (1 - b + b length / mean length))

    with v an entry of M, k1 = 1.2, b = 0.75 and an item's length its sum of v. Attributes of most
    items get negative weights by either formula.

    `reproduce_constant_attributes` does what the paper's published code does, for who wants to
    repeat its runs: its loader keeps an item's vector of zeros and ones, the model takes these for
    indices of features, and so every item has its number of zeros in feature 0 and of ones in
    feature 1: (250, 5), the same for every described item. Such a block gives no information about
    items; it only makes all of them more alike.
    """

    def __init__(
        self,
        catalog: base.Catalog,
        *,
        neighbours: int = 50,
        similarity: str = "cosine",
        weight: float = 1.0,
        feature_weighting: str = "none",
        shrink: float = 0.0,
        alpha: float = 0.5,
        beta: float = 0.5,
        implicit: bool = False,
        neighbours_of: str = "candidate",
        keep_self: bool = False,
        reproduce_constant_attributes: bool = False,
        rngs: nnx.Rngs | None = None,
    ):
        choice("feature_weighting", feature_weighting, WEIGHTINGS)
        profile = itemknn.profile_of(catalog, implicit)
        attributes = itemknn.features_of(catalog).astype(np.float64)  # [I, A]
        if reproduce_constant_attributes:
            attributes = count_entries(attributes)
        items = sp.hstack([sp.csr_matrix(weight * attributes), profile.T]).tocsr()
        weights = itemknn.similar_items(
            weigh(items, feature_weighting),
            neighbours=neighbours,
            similarity=similarity,
            constants=(alpha, beta, shrink),
            neighbours_of=neighbours_of,
            keep_self=keep_self,
        )
        self._remember(profile, weights)


def count_entries(attributes: np.ndarray) -> np.ndarray:
    """Count the zeros and the ones of each row, [I, 2].

    Raises:
      InputError: there are other entries.
    """
    ones = (attributes == 1).sum(1)
    zeros = (attributes == 0).sum(1)
    if (zeros + ones != attributes.shape[1]).any():
        raise InputError("reproduce_constant_attributes needs attributes that are all 0 or 1")
    return np.stack([zeros, ones], axis=1).astype(np.float64)


def weigh(items: sp.csr_matrix, how: str) -> sp.csr_matrix:
    """Apply the `feature_weighting` of AttributeItemKNN to rows [I, N].

    Raises:
      InputError: negative entries, which no count has.
    """
    if how == "none":
        return items
    if items.nnz and items.data.min() < 0:
        raise InputError(f"feature_weighting={how} needs attributes that are not negative")
    items = items.copy()
    items.eliminate_zeros()
    count, df = items.shape[0], items.getnnz(axis=0)[items.indices]  # df of each entry's column
    if how == "tfidf":
        items.data = np.sqrt(items.data) * np.log(count / (1 + df))
        return items
    length = np.asarray(items.sum(1)).ravel()
    relative = np.repeat(length / length.mean(), np.diff(items.indptr))  # of each entry
    rarity = np.log((count - df + 0.5) / (df + 0.5))
    items.data = rarity * items.data * 2.2 / (items.data + 1.2 * (0.25 + 0.75 * relative))
    return items
