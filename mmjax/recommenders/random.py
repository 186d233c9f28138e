"""Random: uniform scores, the weakest baseline."""

import jax
from flax import nnx

from mmjax.recommenders.base import Catalog, Drawn


class Random(nnx.Module):
    """Uniform scores, fixed by the seed and the user.

    A user has the same scores in any batch.
    """

    def __init__(self, catalog: Catalog, *, rngs: nnx.Rngs):
        self.n_items = catalog.n_items
        self.seed = Drawn(jax.random.bits(rngs.params()))

    def tables(self) -> jax.Array:
        return jax.random.key(self.seed[...])

    def scores(self, tables: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(tables, batch["user"])
        return jax.vmap(lambda key: jax.random.uniform(key, (self.n_items,)))(keys)  # [B, I]
