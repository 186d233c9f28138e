"""ItemKNNCBF: items similar in their features to a user's history."""

from flax import nnx

from mmjax.core.errors import InputError
from mmjax.recommenders import base, itemknn


class ItemKNNCBF(itemknn.ItemKNN):
    """ItemKNN on item features only.

    Ferrari Dacrema et al., RecSys 2019: s(u, i) = sum of S_ji over j in u's history.

    S_ji = <f_j, f_i> / (|f_j| |f_i| + shrink), of each row j the `top_k` largest, j itself among
    them; f_i are the features of all modalities side by side, as they are: a modality counts by the
    squares of its lengths. MMRec's model of this name, without its dense [I, I] and [U, I]: S is
    computed by blocks of rows, scores when asked for. Items without features are similar to none
    (in MMRec too, but NaN for `shrink` 0); `top_k` may exceed the items.
    """

    def __init__(
        self,
        catalog: base.Catalog,
        *,
        top_k: int = 10,
        shrink: float = 10.0,
        rngs: nnx.Rngs | None = None,
    ):
        if top_k < 1:
            raise InputError(f"top_k={top_k} must be at least 1: each item is its own first")
        weights = itemknn.similar_items(
            itemknn.features_of(catalog),
            neighbours=top_k,
            similarity="cosine",
            constants=(0.0, 0.0, shrink),
            neighbours_of="history",
            keep_self=True,
        )
        self._remember(itemknn.profile_of(catalog, implicit=True), weights)
