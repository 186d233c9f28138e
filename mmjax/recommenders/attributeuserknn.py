"""AttributeUserKNN: neighbours are users whose items have similar attributes."""

import numpy as np
import scipy.sparse as sp
from flax import nnx

from mmjax.core.names import choice
from mmjax.recommenders import base, itemknn, userknn

PROFILES = ("binary", "tfidf")


class AttributeUserKNN(userknn.UserKNN):
    """UserKNN on the attributes of the users' items.

    Gantner et al., RecSys 2011 (MyMediaLite): s(u, i) = sum of w(u, v) r_vi, see UserKNN.

    w compares the profiles of u and v: the means of the rows a_i over the items that they have,
    however they rated them. a_i are the features of all modalities side by side, of a store of
    scripts/describe.py one-hot rows:

      binary   a_i as it is
      tfidf    a_if ln(N / df_f), made a unit vector; of N described items df_f have attribute f

    Elliot's `tfidf` profiles keep of an attribute its weight in the last item that has it instead
    of the sum, a slip of its code that is not repeated here.
    """

    def __init__(
        self,
        catalog: base.Catalog,
        *,
        neighbours: int = 50,
        similarity: str = "cosine",
        profile: str = "binary",
        shrink: float = 0.0,
        alpha: float = 0.5,
        beta: float = 0.5,
        implicit: bool = True,
        neighbours_of: str = "user",
        keep_self: bool = False,
        rngs: nnx.Rngs | None = None,
    ):
        choice("profile", profile, PROFILES)
        attributes = itemknn.features_of(catalog)  # [I, A]
        if profile == "tfidf":
            attributes = tfidf(attributes)
        weights = userknn.similar_users(
            means(itemknn.profile_of(catalog, True), attributes),
            neighbours=neighbours,
            similarity=similarity,
            constants=(alpha, beta, shrink),
            neighbours_of=neighbours_of,
            keep_self=keep_self,
        )
        self._remember(weights, itemknn.profile_of(catalog, implicit))


def means(histories: sp.csr_matrix, attributes: np.ndarray) -> np.ndarray:
    """Return the mean of each user's item rows, [U, A].

    `attributes` are [I, A]; users without items get zeros.
    """
    count = np.maximum(np.diff(histories.indptr), 1)
    return (histories @ attributes / count[:, None]).astype(attributes.dtype)


def tfidf(attributes: np.ndarray) -> np.ndarray:
    """Return unit rows [I, A], attributes weighted by their rarity.

    Rows of zeros stay. An attribute that every described item has weighs nothing.
    """
    described = (attributes != 0).any(axis=1).sum()
    having = np.maximum((attributes != 0).sum(axis=0), 1)
    rows = attributes * np.log(described / having, dtype=attributes.dtype)[None]
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)
