"""What several recommenders are made of: projected content, linear layers, contrastive losses."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax import graph
from mmjax.errors import InputError
from mmjax.neighbours import unit
from mmjax.recommenders import core


class Content(nnx.Module):
    """One modality's features [I, F] projected to [I, D]: x = F W + b; absent rows give zeros.

    The features are frozen, or trained as the rest is (`trainable`, as MMRec's embeddings from
    features are). In bfloat16 they are multiplied as such and summed in float32.
    """

    def __init__(
        self,
        catalog: core.Catalog,
        modality: str,
        dim: int,
        *,
        trainable: bool = False,
        init: str = "linear",
        bias: bool = True,
        rngs: nnx.Rngs,
    ):
        catalog.modalities()
        features = catalog.features[modality]  # [I, F]
        width = features.shape[1]
        if trainable:
            self.features = nnx.Param(jnp.asarray(features, _wide(features.dtype)))
        else:
            with jax.ensure_compile_time_eval():
                self.features = core.Frozen(jnp.asarray(features))
        # [D, F]: its gradient is then a product that reads the features row by row, on a CPU 2.7
        # times faster than the same numbers as [F, D].
        self.weight = nnx.Param(core.init_table(init, rngs.params(), (width, dim)).T)
        bound = width**-0.5 if init == "linear" else 0.0
        start = jax.random.uniform(rngs.params(), (dim,), minval=-bound, maxval=bound)
        self.bias = nnx.Param(start) if bias else None
        present = np.asarray(catalog.present.get(modality, True))
        self.present = None if present.all() else core.Frozen(present)

    def __call__(self) -> jax.Array:
        """Of all items, [I, D]."""
        features, weight = self.features[...], self.weight[...]
        x = jnp.matmul(features, weight.T, preferred_element_type=weight.dtype)
        x = x if self.bias is None else x + self.bias[...][None]
        return x if self.present is None else jnp.where(self.present[...][:, None], x, 0)

    def weight_of(self, items: jax.Array) -> jax.Array:
        """1 for items [B] that have this modality, 0 for the others."""
        if self.present is None:
            return jnp.ones(items.shape, self.weight[...].dtype)
        return jnp.asarray(self.present[...])[items].astype(self.weight[...].dtype)


def contents(catalog: core.Catalog, dim: int, *, rngs: nnx.Rngs, **options) -> nnx.List:
    """A `Content` for each modality, in their order."""
    names = catalog.modalities()
    return nnx.List([Content(catalog, name, dim, rngs=rngs, **options) for name in names])


def shares(names: Sequence[str], given: Mapping[str, float], single: float) -> dict[str, float]:
    """What each modality counts: as `given`, the rest in equal parts; `single` where there is one.

    Raises:
      InputError: a weight is given to a modality that there is not.
    """
    if len(names) == 1:
        return {names[0]: single}
    for name in given:
        if name not in names:
            raise InputError(f"weights name {name!r}{core.suggestion(name, names)}")
    rest = (1 - sum(given.values())) / max(len(names) - len(given), 1)
    return {name: given.get(name, rest) for name in names}


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    """What is trained is at least float32."""
    return jnp.promote_types(dtype, jnp.float32)


def linear(
    width: int, out: int, *, init: str = "linear", bias: bool = True, rngs: nnx.Rngs
) -> nnx.Linear:
    """x W + b, W [width, out] drawn by `core.init_table`; b is zero, or torch's for `linear`."""
    bound = width**-0.5 if init == "linear" else 0.0
    return nnx.Linear(
        width,
        out,
        use_bias=bias,
        kernel_init=lambda key, shape, dtype: core.init_table(init, key, shape),
        bias_init=lambda key, shape, dtype: jax.random.uniform(
            key, shape, minval=-bound, maxval=bound
        ),
        rngs=rngs,
    )


Tables = tuple[jax.Array, jax.Array]  # of users [U, D] and items [I, D]


def propagations(adjacency: graph.Graph, user: jax.Array, item: jax.Array, layers: int):
    """Yields users and items after each of L steps over the user-item graph, LightGCN's."""
    for _ in range(layers):
        user, item = graph.propagate(adjacency, item), graph.propagate(adjacency.flip(), user)
        yield user, item


def light_gcn(adjacency: graph.Graph, user: jax.Array, item: jax.Array, layers: int) -> Tables:
    """The mean of the states 0..L of users and items."""
    users, items = user, item
    for u, i in propagations(adjacency, user, item, layers):
        users, items = users + u, items + i
    return users / (layers + 1), items / (layers + 1)


def margin(tables: Tables, batch: dict[str, jax.Array]) -> jax.Array:
    """s(u, i) - s(u, j) of inner products, [B]."""
    users, items = tables
    return (users[batch["user"]] * (items[batch["pos"]] - items[batch["neg"]])).sum(axis=-1)


def rows(tables: Tables, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rows [B, D] of the batch's users, positives and negatives."""
    users, items = tables
    return users[batch["user"]], items[batch["pos"]], items[batch["neg"]]


def info_nce(a: jax.Array, b: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """Mean of -log softmax over the batch of <a_n, b_m> / temperature at m = n; rows [B, D] are
    made unit vectors first."""
    logits = unit(a) @ unit(b).T / temperature  # [B, B]
    return (jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits)).mean()


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Of rows [B, D] one by one, [B]; 0 where a row is zero."""
    return (unit(a) * unit(b)).sum(axis=-1)


def dropout(key: jax.Array, x: jax.Array, rate: jax.Array | float) -> jax.Array:
    """Entries set to zero with probability `rate`, the rest divided by 1 - rate."""
    keep = jax.random.uniform(key, x.shape) >= rate
    return jnp.where(keep, x / (1 - rate), 0)


def average(values: Sequence[jax.Array]) -> jax.Array:
    return sum(values) / len(values)
