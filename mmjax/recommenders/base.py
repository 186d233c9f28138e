"""The recommender contract, and the losses and initialisers that the models share.

A recommender is an `nnx.Module` in a module of its own:

    __init__(catalog, *, ..., rngs)      keyword arguments that SHAPE the program
    loss(batch, epoch, *, ..., key)      keyword arguments that are TRACED: a sweep never recompiles
    epoch(key) -> arrays                 optional: what is redrawn or rebuilt each epoch
    tables() -> arrays                   whatever does not depend on the batch, once an evaluation
    scores(tables, batch) -> [B, I]      batch["user"] is [B]

A training batch holds "user", "pos" and "neg", each [B], and "step", its number in the epoch. What
training changes is an `nnx.Param`; features and graphs are `Frozen` and shared by all trials;
`Drawn` is random, one a trial, and never trained. A recommender without `loss` (MostPop, ItemKNN)
is ready when it is built.
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
    """Never changes and does not depend on the seed: features, graphs, counts."""


class Drawn(nnx.Variable):
    """Drawn from the trial's seed at initialisation and never trained."""


@dataclass(frozen=True)
class Catalog:
    """All that a recommender may know: sizes, train interactions, item features by modality."""

    n_users: int
    n_items: int
    train_user: np.ndarray  # [E] int32, sorted by user, then item
    train_item: np.ndarray  # [E] int32
    train_rating: np.ndarray  # [E] float32
    features: Mapping[str, Any] = field(default_factory=dict)  # modality -> [I, F], absent rows 0
    present: Mapping[str, Any] = field(default_factory=dict)  # modality -> [I] bool
    cache: str = ""  # folder that keeps graphs of the features; "" keeps none
    mesh: Any = None  # whose devices share the work of building such graphs

    @classmethod
    def of(
        cls,
        data: Any,
        features: Mapping[str, Any],
        present: Mapping[str, Any],
        cache: str = "",
        mesh: Any = None,
    ) -> "Catalog":
        """The catalogue of a dataset, which has `n_users`, `n_items` and `train`."""
        train = (data.train.user, data.train.item, data.train.rating)
        return cls(data.n_users, data.n_items, *train, features, present, cache, mesh)

    @property
    def shape(self) -> tuple[int, int]:
        return self.n_users, self.n_items

    def concatenated(self) -> jax.Array | LazyFeatures:
        """All modalities side by side in their order, [I, F1 + F2 + ...].

        Raises:
          InputError: there is no modality.
        """
        self.modalities()

        def beside(*rows):
            return jnp.concatenate(rows, axis=1)

        return by_rows(beside, *self.features.values())

    def modalities(self) -> tuple[str, ...]:
        """Their names, in their order.

        Raises:
          InputError: there is none, or one does not have a row for each item, holds what is not a
            number, or nothing but zeros.
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
                finite, some = True, rows.some()  # what is not finite cannot be read
            else:
                with jax.ensure_compile_time_eval():
                    finite, some = map(bool, _looked_at(jnp.asarray(rows)))
            if not finite:
                raise InputError(
                    f"features {name!r} hold NaN or infinite values; extract them again"
                )
            if not some:
                raise InputError(f"features {name!r} are all zero; leave this modality out")
        return tuple(self.features)

    def neighbours(self, modality: str, top_k: int) -> knn.Neighbours:
        """The `top_k` items most similar to each in a modality, by cosine; see `knn.build`.

        Raises:
          InputError: there is no such modality, or `top_k` is not between 1 and I.
        """
        if modality not in self.features:
            raise InputError(f"no features {modality!r}{suggestion(modality, self.features)}")
        with jax.ensure_compile_time_eval():
            return knn.build(self.features[modality], top_k, self.cache, self.mesh)


@jax.jit
def _looked_at(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether all values are finite, and whether any is not zero. Compiled, so nothing is copied.

    Not the largest value in one go: on CPU, XLA's maximum of several NaN can be a number.
    """
    return jnp.isfinite(rows).all(), (rows != 0).any()


# Losses. `margin` is s(u, i) - s(u, j), [B].


# Initialisers with the meaning of their torch names on a table or weight [in, out].


Tables = tuple[jax.Array, jax.Array]  # of users [U, D] and items [I, D]
