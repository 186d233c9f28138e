"""MostPop: the baseline that any personalised recommender has to beat."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.recommenders.base import Catalog, Frozen


class MostPop(nnx.Module):
    """Baseline that scores an item by its number of train interactions.

    The scores are the same for every user.
    """

    def __init__(self, catalog: Catalog, *, rngs: nnx.Rngs | None = None):
        counts = np.bincount(catalog.train_item, minlength=catalog.n_items)
        self.popularity = Frozen(counts.astype(np.float32))  # [I]

    def tables(self) -> jax.Array:
        return self.popularity[...]

    def scores(self, tables: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        return jnp.broadcast_to(tables, (batch["user"].shape[0], tables.shape[0]))  # [B, I]
