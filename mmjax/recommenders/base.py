"""Contract of a recommender: its methods and its input data.

A recommender is an `nnx.Module` in a Python module of its own:

    __init__(catalog, *, ..., rngs)      keyword arguments shape the compiled program
    loss(batch, epoch, *, ..., key)      keyword arguments are traced: a sweep never recompiles
    epoch(key) -> arrays                 optional: what is redrawn or rebuilt each epoch
    tables() -> arrays                   whatever does not depend on the batch, once per evaluation
    scores(tables, batch) -> [B, I]      batch["user"] is [B]

A training batch holds "user", "pos" and "neg", each [B], and "step", its number in the epoch. What
training changes is an `nnx.Param`. Features and graphs are `Frozen` and shared by all trials.
`Drawn` values are random, one per trial, and never trained. A recommender without `loss` (MostPop,
ItemKNN) is ready when it is built.

Shape symbols of all recommenders: B batch, U users, I items, E edges, F feature width, D model
width, M modalities.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.core.errors import InputError
from mmjax.core.names import suggestion
from mmjax.ops import knn
from mmjax.parallel.lazy_features import LazyFeatures, by_rows


class Frozen(nnx.Variable):
    """Variable that never changes: features, graphs, counts.

    It does not depend on the seed.
    """


class Drawn(nnx.Variable):
    """Variable drawn from the trial's seed and never trained.

    It is drawn at initialisation.
    """


@dataclass(frozen=True)
class Catalog:
    """All data that a recommender may use.

    Sizes, train interactions and item features by modality.
    """

    n_users: int
    n_items: int
    train_user: np.ndarray  # [E] int32, sorted by user, then item
    train_item: np.ndarray  # [E] int32
    train_rating: np.ndarray  # [E] float32
    features: Mapping[str, Any] = field(default_factory=dict)  # modality -> [I, F], absent rows 0
    present: Mapping[str, Any] = field(default_factory=dict)  # modality -> [I] bool
    cache: str = ""  # folder for graphs of the features; "" keeps none
    mesh: Any = None  # its devices share the work of building such graphs

    @classmethod
    def of(
        cls,
        data: Any,
        features: Mapping[str, Any],
        present: Mapping[str, Any],
        cache: str = "",
        mesh: Any = None,
    ) -> "Catalog":
        """Return the catalog of a dataset.

        `data` has `n_users`, `n_items` and `train`.
        """
        train = (data.train.user, data.train.item, data.train.rating)
        return cls(data.n_users, data.n_items, *train, features, present, cache, mesh)

    @property
    def shape(self) -> tuple[int, int]:
        return self.n_users, self.n_items

    def concatenated(self) -> jax.Array | LazyFeatures:
        """Concatenate the features of all modalities.

        The result is [I, F1 + F2 + ...], the modalities in their order.

        Raises:
          InputError: see `modalities`.
        """
        self.modalities()

        def beside(*rows: jax.Array) -> jax.Array:
            return jnp.concatenate(rows, axis=1)

        return by_rows(beside, *self.features.values())

    def modalities(self) -> tuple[str, ...]:
        """Check the features and return the names of the modalities.

        The names keep their order.

        Raises:
          InputError: there is no modality, or one does not have a row for each item, holds NaN or
            infinite values, or holds nothing but zeros.
        """
        if not self.features:
            raise InputError(
                "this recommender needs item features; give --config.features=NAME=STORE"
            )
        for name, rows in self.features.items():
            if rows.ndim != 2 or rows.shape[0] != self.n_items:
                raise InputError(
                    f"features {name!r} have the shape {tuple(rows.shape)}; there are "
                    f"{self.n_items} items, each needs one row"
                )
            if isinstance(rows, LazyFeatures):
                finite, nonzero = True, rows.some()  # reading raises where values are not finite
            else:
                with jax.ensure_compile_time_eval():
                    finite, nonzero = map(bool, _looked_at(jnp.asarray(rows)))
            if not finite:
                raise InputError(
                    f"features {name!r} hold NaN or infinite values; extract them again"
                )
            if not nonzero:
                raise InputError(f"features {name!r} are all zero; leave this modality out")
        return tuple(self.features)

    def neighbours(self, modality: str, top_k: int) -> knn.Neighbours:
        """Return the `top_k` most similar items of each item.

        Similarity is the cosine of the features of one modality; see `knn.build`.

        Raises:
          InputError: there is no such modality, or `top_k` is not between 1 and I.
        """
        if modality not in self.features:
            raise InputError(f"no features {modality!r}{suggestion(modality, self.features)}")
        with jax.ensure_compile_time_eval():
            return knn.build(self.features[modality], top_k, self.cache, self.mesh)


@jax.jit
def _looked_at(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return whether all values are finite and any is nonzero.

    It is compiled, so nothing is copied. These are two reductions, not one maximum: on CPU, XLA's
    maximum of several NaN can be a number.
    """
    return jnp.isfinite(rows).all(), (rows != 0).any()


Tables = tuple[jax.Array, jax.Array]  # of users [U, D] and items [I, D]
