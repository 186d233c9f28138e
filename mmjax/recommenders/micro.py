"""MICRO: one learned item graph a modality, fused by attention and held to the fusion."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from mmjax import neighbours, partition
from mmjax.recommenders import core, latent, parts

BLOCK = 1024  # items whose similarities to as many others are in memory at once


class MICRO(nnx.Module):
    """Zhang et al., TKDE 2022: s = <e_u, e_i + n(h_i)>, h = sum_m a_m E_m, E_m = S_m^L I.

    e, n, I and the learned S_m are LATTICE's, one graph a modality; a = softmax_m(q . tanh(W E_m +
    b)), item by item. The loss is BPR (softplus) + l_w/2 sum ||.||^2 / B of the final rows of the
    batch + cl_weight sum_m C(E_m, h). C is the mean over ALL items i of

        -log exp(c(E_i, h_i)) / [sum_{j != i} exp(c(E_i, E_j)) + sum_j exp(c(E_i, h_j))],

    c the cosine over `temperature`; computed by blocks of items, and again for the gradient, so
    that memory stays bounded. The authors' blocks have 4096 rows; no number depends on that. One
    modality alone is its own h.

    S_m are built as LATTICE's, where the momentum of parameters without a gradient is spoken of.
    The authors' `ngcf` body is not here; `layers=0` is their `mf`. An item without a modality has
    no edges of it and no part in its C.
    """

    def __init__(
        self,
        catalog: core.Catalog,
        *,
        dim: int,
        layers: int = 2,
        item_layers: int = 1,
        top_k: int = 10,
        skip: float = 0.9,
        trainable_features: bool = True,
        rngs: nnx.Rngs,
    ):
        self.layers, self.item_layers = layers, item_layers
        table = lambda count: core.init_table("xavier_uniform", rngs.params(), (count, dim))  # noqa: E731
        self.user, self.item = nnx.Param(table(catalog.n_users)), nnx.Param(table(catalog.n_items))
        options = dict(top_k=top_k, skip=skip, self_one=False, trainable=trainable_features)
        self.similar = nnx.List(
            latent.ItemGraph(catalog, [name], dim, **options, rngs=rngs)
            for name in catalog.modalities()
        )
        self.attention = parts.Attention(dim, rngs=rngs)
        self.graph = core.Frozen(latent.looped(catalog, "left", self.user[...].dtype))

    def epoch(self, key: Any) -> tuple[latent.Kept, ...]:
        """The item graphs."""
        return tuple(similar.build() for similar in self.similar)

    def loss(
        self,
        batch: dict[str, jax.Array],
        epoch: tuple[latent.Kept, ...],
        *,
        l_w: float,
        cl_weight: float = 0.03,
        temperature: float = 0.5,
        key: Any,
    ) -> jax.Array:
        tables, states, fused = self._states(epoch, batch["step"] == 0)
        user, pos, neg = parts.rows(tables, batch)
        total = core.bpr((user * (pos - neg)).sum(axis=-1), "softplus")
        total += l_w * core.penalty((user, pos, neg), "squares")
        for similar, state in zip(self.similar, states, strict=True):
            there = similar.contents[0].weight_of(jnp.arange(state.shape[0]))
            total += cl_weight * (there * _contrast(state, fused, there, temperature)).mean()
        return total

    def _states(
        self, kept: tuple[latent.Kept, ...], first: jax.Array | bool
    ) -> tuple[parts.Tables, list[jax.Array], jax.Array]:
        """Users and items; E_m; h."""
        item = self.item[...]
        users, items = latent.walk(self.graph.get_value(), self.user[...], item, self.layers)
        states = [
            similar.propagate(graph, first, item, self.item_layers)
            for similar, graph in zip(self.similar, kept, strict=True)
        ]
        fused = states[0]
        if len(states) > 1:  # alone, a = 1
            shares = self.attention(states)
            fused = sum(share * state for share, state in zip(shares, states, strict=True))
        return (users, items + neighbours.unit(fused)), states, fused

    def tables(self) -> parts.Tables:
        """Users [U, D] and items [I, D] on graphs built anew."""
        return self._states(self.epoch(None), False)[0]

    def scores(self, tables: parts.Tables, batch: dict[str, jax.Array]) -> jax.Array:
        return tables[0][batch["user"]] @ tables[1].T  # [B, I]


def _contrast(
    state: jax.Array, fused: jax.Array, there: jax.Array, temperature: jax.Array | float
) -> jax.Array:
    """C of every item [I], among those that are `there` [I] (1 or 0)."""
    alone = fused is state  # of one modality: h is E_m
    state, shift = neighbours.unit(state) / jnp.sqrt(temperature), 1 / temperature
    fused = state if alone else neighbours.unit(fused) / jnp.sqrt(temperature)
    # Cosines are at most 1: less 1, nothing overflows.
    pair = (state * fused).sum(axis=-1) - shift
    others = _others(state, there, shift)
    both = others + there * jnp.exp(pair) if alone else _row_sums(state, fused, there, shift)
    return jnp.log(others + both) - pair


def _row_sums(x: jax.Array, y: jax.Array, weight: jax.Array, shift: jax.Array) -> jax.Array:
    """sum_j weight_j exp(x_i . y_j - shift) for every row i of x [I]; devices share the rows."""

    def own(x: jax.Array, y: jax.Array, weight: jax.Array, shift: jax.Array) -> jax.Array:
        @jax.checkpoint
        def sums(rows: jax.Array) -> jax.Array:
            return jnp.exp(rows @ y.T - shift) @ weight  # [B]

        return jax.lax.map(sums, _blocks(x)).reshape(-1)[: x.shape[0]]

    mesh = partition.current()
    if mesh is None:
        return own(x, y, weight, shift)
    split, whole = PartitionSpec(partition.AXES), PartitionSpec()
    shared = partition.on_each(own, mesh, (split, whole, whole, whole), split)
    return shared(partition.filled(x, partition.pieces(mesh)), y, weight, shift)[: x.shape[0]]


@jax.custom_vjp
def _others(x: jax.Array, weight: jax.Array, shift: jax.Array) -> jax.Array:
    """sum_{j != i} weight_j exp(x_i . x_j - shift) for every row i of x [I].

    What is summed is symmetric, so that each pair of blocks is computed once, and its derivative
    needs one product where that of two factors needs two.
    """
    blocks = _blocks(x), _blocks(weight)
    sums = _over_pairs(_add_sums, jnp.zeros_like(blocks[1]), *blocks, shift)
    return sums.reshape(-1)[: x.shape[0]]


def _add_sums(
    sums: jax.Array, a: jax.Array, b: jax.Array, x: jax.Array, weight: jax.Array, shift: jax.Array
) -> jax.Array:
    values = _values(x, a, b, shift)
    sums = sums.at[a].add(values @ weight[b])
    return sums.at[b].add(jnp.where(a == b, 0, values.T @ weight[a]))


def _others_forward(*operands: jax.Array) -> tuple[jax.Array, tuple]:
    sums = _others(*operands)
    return sums, (*operands, sums)


def _others_backward(saved: tuple, given: jax.Array) -> tuple[jax.Array, ...]:
    x, weight, shift, sums = saved
    blocks = _blocks(x), _blocks(weight)
    of_x = _over_pairs(_add_of_x, jnp.zeros_like(blocks[0]), *blocks, shift, _blocks(given))
    of_x = of_x.reshape(-1, x.shape[1])[: x.shape[0]]
    return of_x, _others(x, given, shift), -(given * sums).sum()


def _add_of_x(
    of_x: jax.Array,
    a: jax.Array,
    b: jax.Array,
    x: jax.Array,
    weight: jax.Array,
    shift: jax.Array,
    given: jax.Array,
) -> jax.Array:
    both = jnp.outer(given[a], weight[b]) + jnp.outer(weight[a], given[b])
    values = both * _values(x, a, b, shift)
    of_x = of_x.at[a].add(values @ x[b])
    return of_x.at[b].add(jnp.where(a == b, 0, values.T @ x[a]))


_others.defvjp(_others_forward, _others_backward)


def _values(rows: jax.Array, a: jax.Array, b: jax.Array, shift: jax.Array) -> jax.Array:
    """exp(x_i . x_j - shift), 0 for i = j, of the rows of blocks a and b [B, B]."""
    values = jnp.exp(rows[a] @ rows[b].T - shift)
    return jnp.where((a == b) & jnp.eye(len(values), dtype=bool), 0, values)


def _blocks(x: jax.Array) -> jax.Array:
    """Rows [I, ...] as blocks of them [blocks, B, ...], the last one filled up with zeros."""
    count = -(-len(x) // BLOCK)
    size = -(-len(x) // count)
    x = jnp.pad(x, [(0, count * size - len(x))] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(count, size, *x.shape[1:])


def _over_pairs(add: Callable, total: jax.Array, *operands: jax.Array) -> jax.Array:
    """What `add(total, a, b, *operands)` makes of `total`, zeros, over all a <= b of its rows.

    Several devices share the pairs, each with the operands whole.
    """
    mesh = partition.current()
    many = 1 if mesh is None else partition.pieces(mesh)
    pairs = np.stack(np.triu_indices(len(total)), axis=1)
    # A block past the last is added nowhere.
    pairs = np.pad(pairs, ((0, -len(pairs) % many), (0, 0)), constant_values=len(total))

    def own(pairs: jax.Array, total: jax.Array, *operands: jax.Array) -> jax.Array:
        step = lambda total, pair: (add(total, *pair, *operands), None)  # noqa: E731
        total, _ = jax.lax.scan(step, total, pairs)
        return total if mesh is None else jax.lax.psum(total, partition.AXES)

    if mesh is None:
        return own(pairs, total, *operands)
    split, whole = PartitionSpec(partition.AXES), PartitionSpec()
    shared = partition.on_each(own, mesh, (split, *[whole] * (1 + len(operands))), whole)
    return shared(jnp.asarray(pairs), total, *operands)
