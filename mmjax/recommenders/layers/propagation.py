"""What several recommenders are made of: projected content, linear layers, walks over graphs."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.core import modality
from mmjax.core.errors import InputError
from mmjax.ops import contrastive, gathered_matmul, graph, knn, weighted_graph
from mmjax.ops.knn import unit
from mmjax.parallel import lazy_features
from mmjax.recommenders import base

Number = TypeVar("Number", int, float)


class Content(nnx.Module):
    """One modality's features [I, F] projected to [I, D]: x = F W + b; absent rows give zeros.

    The features are frozen, or trained as the rest is (`trainable`, as MMRec's embeddings from
    features are). In bfloat16 they are multiplied as such and summed in float32.
    """

    def __init__(
        self,
        catalog: base.Catalog,
        modality: str,
        dim: int,
        *,
        trainable: bool = False,
        init: str = "linear",
        bias: str | None = "linear",
        rngs: nnx.Rngs,
    ):
        features = catalog.features[modality]  # [I, F]
        width = features.shape[1]
        if trainable:
            self.features = nnx.Param(lazy_features.array(features).astype(_wide(features.dtype)))
        elif isinstance(features, lazy_features.Unread):
            self.features = base.Frozen(features)
        else:
            with jax.ensure_compile_time_eval():
                self.features = base.Frozen(jnp.asarray(features))
        # [D, F]: its gradient is then a product that reads the features row by row, on a CPU 2.7
        # times faster than the same numbers as [F, D].
        self.weight = nnx.Param(base.init_table(init, rngs.params(), (width, dim)).T)
        key = rngs.params()  # also without a bias, so that what is drawn next is the same
        self.bias = nnx.Param(base.init_bias(bias, key, width, dim)) if bias else None
        present = np.asarray(catalog.present.get(modality, True))
        self.present = None if present.all() else base.Frozen(present)

    def __call__(self, items: jax.Array | None = None) -> jax.Array:
        """Of all items, [I, D], or of some, [B, D], for which no other rows are read."""
        features, weight = self.features[...], self.weight[...]
        if items is None:
            x = jnp.matmul(features, weight.T, preferred_element_type=weight.dtype)
        else:
            x = gathered_matmul.project(features, weight, items)
        x = x if self.bias is None else x + self.bias[...][None]
        if self.present is None:
            return x
        there = jnp.asarray(self.present[...])
        return jnp.where((there if items is None else there[items])[:, None], x, 0)

    def weight_of(self, items: jax.Array) -> jax.Array:
        """1 for items [B] that have this modality, 0 for the others."""
        if self.present is None:
            return jnp.ones(items.shape, self.weight[...].dtype)
        return jnp.asarray(self.present[...])[items].astype(self.weight[...].dtype)


def contents(catalog: base.Catalog, dim: int, *, rngs: nnx.Rngs, **options) -> nnx.List:
    """A `Content` for each modality, in their order."""
    names = catalog.modalities()
    return nnx.List([Content(catalog, name, dim, rngs=rngs, **options) for name in names])


def joined(catalog: base.Catalog, dim: int, *, rngs: nnx.Rngs, **options) -> Content:
    """One `Content` of all modalities side by side; an item that has none gives zeros."""
    names = catalog.modalities()
    present = np.broadcast_arrays(*(catalog.present.get(name, True) for name in names))
    whole = dataclasses.replace(
        catalog,
        features={"joined": catalog.concatenated()},
        present={"joined": np.any(present, axis=0)},
    )
    return Content(whole, "joined", dim, rngs=rngs, **options)


class Head(nnx.Module):
    """VBPR's second space beside another model's: <t_u, p_i>, p_i = F W + b of all modalities side
    by side made a unit vector, F frozen, t Xavier-uniform."""

    def __init__(self, catalog: base.Catalog, dim: int, *, rngs: nnx.Rngs):
        table = base.init_table("xavier_uniform", rngs.params(), (catalog.n_users, dim))
        self.user = nnx.Param(table)
        self.content = joined(catalog, dim, rngs=rngs)

    def beside(self, tables: "Tables") -> "Tables":
        """(g_u | t_u) and (g_i | p_i), whose inner products are the sums of both."""
        users, items = tables
        users = jnp.concatenate([users, self.user[...]], axis=1)
        return users, jnp.concatenate([items, unit(self.content())], axis=1)


def by_modality(what: str, given: Mapping[str, Number], names: Sequence[str]) -> dict[str, Number]:
    """Return the values that an option gives to modalities by name, under the names there are.

    `visual` is also an only `image_feat`, see `modality`. A name that means none of them is an
    error while any is left without a value, since it may be that one misspelt.

    Raises:
      InputError: a name means none of the modalities, or two mean one.
    """
    found: dict[str, Number] = {}
    unknown = []
    for name, value in given.items():
        meant = modality.meant(name, names)
        if meant is None:
            unknown.append(name)
        elif meant in found:
            raise InputError(f"{what} names the modality {meant!r} twice")
        else:
            found[meant] = value
    if unknown and len(found) < len(names):
        raise InputError(f"{what} names {unknown[0]!r}{base.suggestion(unknown[0], names)}")
    return found


def shares(names: Sequence[str], given: Mapping[str, float], single: float) -> dict[str, float]:
    """Return what each modality counts: as `given`, else equal parts of the rest.

    Where there is one modality it counts `single`.

    Raises:
      InputError: see `by_modality`.
    """
    if len(names) == 1:
        return {names[0]: single}
    given = by_modality("weights", given, names)
    rest = (1 - sum(given.values())) / max(len(names) - len(given), 1)
    return {name: given.get(name, rest) for name in names}


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    """What is trained is at least float32."""
    return jnp.promote_types(dtype, jnp.float32)


def linear(
    width: int, out: int, *, init: str = "linear", bias: bool = True, rngs: nnx.Rngs
) -> nnx.Linear:
    """Make x W + b: W [width, out] by `core.init_table`, b as torch draws a Linear's."""
    return nnx.Linear(
        width,
        out,
        use_bias=bias,
        kernel_init=lambda key, shape, dtype: base.init_table(init, key, shape),
        bias_init=lambda key, shape, dtype: base.init_bias("linear", key, width, out),
        rngs=rngs,
    )


class Attention(nnx.Module):
    """softmax over M states of <q, tanh(W v_m + b)>, row by row."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.hidden = linear(dim, dim, rngs=rngs)
        self.query = linear(dim, 1, bias=False, rngs=rngs)

    def __call__(self, states: Sequence[jax.Array]) -> list[jax.Array]:
        """What each of the states [N, D] counts, [N, 1]."""
        logits = [self.query(jnp.tanh(self.hidden(v))) for v in states]
        shares = jax.nn.softmax(jnp.concatenate(logits, axis=1), axis=1)
        return jnp.split(shares, len(states), axis=1)


Tables = tuple[jax.Array, jax.Array]  # of users [U, D] and items [I, D]


def propagations(adjacency: graph.Graph, user: jax.Array, item: jax.Array, layers: int):
    """Yields users and items after each of L steps over the user-item graph, LightGCN's."""
    for _ in range(layers):
        user, item = graph.propagate(adjacency, item), graph.propagate(adjacency.flip(), user)
        yield user, item


def light_gcn(adjacency: graph.Graph, user: jax.Array, item: jax.Array, layers: int) -> Tables:
    """The mean of the states 0..L of users and items."""
    return light_gcn_over([(adjacency, adjacency.flip())] * layers, user, item)


def light_gcn_over(
    graphs: Sequence[tuple[graph.Graph, graph.Graph]], user: jax.Array, item: jax.Array
) -> Tables:
    """`light_gcn` with graphs of its own in each layer: one [U, I] that users read items by, and
    one [I, U] that items read users by."""
    users, items = user, item
    for to_users, to_items in graphs:
        user, item = graph.propagate(to_users, item), graph.propagate(to_items, user)
        users, items = users + user, items + item
    return users / (len(graphs) + 1), items / (len(graphs) + 1)


def normalised(pattern: weighted_graph.Pattern, eps: float, dtype: np.dtype) -> graph.Graph:
    """D^-1/2 A D^-1/2 with degrees + eps, of all edges of a pattern."""
    return weighted_graph.weighted(pattern, weighted_graph.symmetric(pattern, eps, dtype))


def pruned(
    key: jax.Array, whole: weighted_graph.Pattern, count: int, eps: float, dtype: np.dtype
) -> graph.Graph:
    """`count` edges, drawn without replacement in proportion to their weight in the normalised
    graph, normalised again; FREEDOM's."""
    if count == len(whole.forward.rows):
        return normalised(whole, eps, dtype)
    odds = jnp.log(weighted_graph.symmetric(whole, eps, dtype))
    return normalised(weighted_graph.keep(whole, weighted_graph.draw(key, odds, count)), eps, dtype)


def similar(
    catalog: base.Catalog, shares: Mapping[str, float], top_k: int, eps: float, dtype: np.dtype
) -> graph.Graph:
    """sum_m c_m S_m with c the shares; S_m joins each item with its `top_k` most similar in one
    modality, itself among them, every edge 1/k."""
    graphs = [
        share * knn.weigh(catalog.neighbours(name, top_k), "uniform", eps=eps)
        for name, share in shares.items()
    ]
    return graph.from_scipy(sum(graphs), dtype)


def margin(tables: Tables, batch: dict[str, jax.Array]) -> jax.Array:
    """s(u, i) - s(u, j) of inner products, [B]."""
    users, items = tables
    return (users[batch["user"]] * (items[batch["pos"]] - items[batch["neg"]])).sum(axis=-1)


def rows(tables: Tables, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rows [B, D] of the batch's users, positives and negatives."""
    users, items = tables
    return users[batch["user"]], items[batch["pos"]], items[batch["neg"]]


def with_sides(
    own: Sequence[jax.Array],
    sides: Sequence[jax.Array],
    *,
    l_w: jax.Array | float,
    cl_weight: jax.Array | float,
    temperature: jax.Array | float,
) -> jax.Array:
    """MGCN's loss, and SMORE's: BPR of c + t and a penalty on it, and c and t told from others'.

    `own` c and `sides` t are rows [B, D] of the batch's users, positives and negatives.
    """
    user, pos, neg = final = [c + t for c, t in zip(own, sides, strict=True)]
    apart = sum(contrastive.info_nce(sides[n], own[n], temperature) for n in (1, 0))
    ranking = base.bpr((user * (pos - neg)).sum(axis=-1), "softplus")
    return ranking + l_w * base.penalty(final, "squares") + cl_weight * apart


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Of rows [B, D] one by one, [B]; 0 where a row is zero."""
    return (unit(a) * unit(b)).sum(axis=-1)


def dropout(key: jax.Array, x: jax.Array, rate: jax.Array | float) -> jax.Array:
    """Entries set to zero with probability `rate`, the rest divided by 1 - rate."""
    keep = uniform(key, x.shape, jnp.float32) >= rate
    return jnp.where(keep, x / (1 - rate), 0)


def uniform(key: jax.Array, shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
    """In [0, 1), in steps of 2^-16. Two numbers come from one draw of 32 bits: on a CPU, where a
    draw takes 13 ns, a table of them a layer is otherwise half of what a step costs."""
    width = shape[-1]
    bits = jax.random.bits(key, (*shape[:-1], -(-width // 2)))
    bits = jax.lax.bitcast_convert_type(bits, jnp.uint16)  # [..., width / 2, 2]
    return bits.reshape(*shape[:-1], -1)[..., :width].astype(dtype) / 2**16


def average(values: Sequence[jax.Array]) -> jax.Array:
    return sum(values) / len(values)
