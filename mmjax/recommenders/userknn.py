"""UserKNN: user neighbours by interactions; nothing is trained."""

import numpy as np
import scipy.sparse as sp
from flax import nnx

from mmjax.core.names import choice
from mmjax.recommenders import base, itemknn

SIDES = {"user": "history", "neighbour": "candidate"}


class UserKNN(itemknn.ItemKNN):
    """UserKNN: k nearest users by their interactions.

    Resnick et al., CSCW 1994: s(u, i) = sum of w(u, v) r_vi over the neighbours v of u.

    w compares two rows of R, x = row u and y = row v, by the similarities of ItemKNN. (Elliot's
    `aiolli` code has x and y the other way round: alpha here is its 1 - alpha.) Ratings are not
    centred, and the sum is not divided by that of the weights, as in all codes of top-n
    recommendation; the latter would not change a user's list.

    `neighbours_of="user"` keeps for each scored user their top-k (the textbook's rule, and
    similaripy's with `keep_self`). `"neighbour"` keeps the top-k of each v: of u's neighbours only
    those remain that count u among their own top-k, so that some users have hundreds and some none.
    That is what upstream Elliot (and the evaluation code of Ferrari Dacrema et al. 2019, from which
    it has it) does, with `keep_self` but for its `aiolli` variant. A user's own history, all that
    `keep_self` adds, is masked in an evaluation, but it takes a neighbour's place.
    """

    def __init__(
        self,
        catalog: base.Catalog,
        *,
        neighbours: int = 50,
        similarity: str = "cosine",
        shrink: float = 0.0,
        alpha: float = 0.5,
        beta: float = 0.5,
        implicit: bool = True,
        neighbours_of: str = "user",
        keep_self: bool = False,
        rngs: nnx.Rngs | None = None,
    ):
        profile = itemknn.profile_of(catalog, implicit)
        weights = similar_users(
            profile,
            neighbours=neighbours,
            similarity=similarity,
            constants=(alpha, beta, shrink),
            neighbours_of=neighbours_of,
            keep_self=keep_self,
        )
        self._remember(weights, profile)


def similar_users(
    users: sp.csr_matrix | np.ndarray, *, neighbours_of: str, **options
) -> sp.csr_matrix:
    """Return the neighbours' weights [user, neighbour].

    Users are rows of [U, N]; see `itemknn.similar_items`.

    Raises:
      InputError: as there.
    """
    choice("neighbours_of", neighbours_of, SIDES)
    # Rows of these weights are the scored users; rows of item weights are history items.
    return itemknn.similar_items(users, neighbours_of=SIDES[neighbours_of], **options)
