"""NGCF: graph propagation with weights and an activation in each layer."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.core.errors import InputError
from mmjax.core.names import choice
from mmjax.ops import draws, graph, weighted_graph
from mmjax.ops.normalize import unit
from mmjax.recommenders import base, losses
from mmjax.recommenders.layers import initializers, propagation

COMBINATIONS = ("concat", "mean")


class Adjacency(NamedTuple):
    """D^-1 (A + I) of the user-item graph, in both directions.

    The two directions may lack different edges.
    """

    to_users: graph.Graph  # [U, I]
    to_items: graph.Graph  # [I, U]
    users: jax.Array  # [U, 1] the diagonal
    items: jax.Array  # [I, 1]


class Layer(nnx.Module):
    """NGCF layer from states x and propagated states y.

    It gives leaky_0.2(y W1 + b1 + (y * x) W2 + b2), where y = D^-1 (A + I) x.
    """

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        def init(shape: tuple[int, int]) -> nnx.Param:
            return nnx.Param(initializers.init_table("xavier_uniform", rngs.params(), shape))

        self.weight1, self.bias1 = init((dim, dim)), init((1, dim))
        self.weight2, self.bias2 = init((dim, dim)), init((1, dim))

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        total = y @ self.weight1[...] + self.bias1[...]
        total += (y * x) @ self.weight2[...] + self.bias2[...]
        return jax.nn.leaky_relu(total, 0.2)


class NGCF(nnx.Module):
    """NGCF: neural graph collaborative filtering.

    Wang et al., SIGIR 2019: s = <z_u, z_i>, z = (x_0 | x_1 | ... | x_L), x_0 the id tables and

        x_l = n(drop(leaky_0.2(y W1 + b1 + (y * x_(l-1)) W2 + b2))),   y = D^-1 (A + I) x_(l-1)

    with n unit vectors and `drop` the message dropout. The loss is BPR plus l_w times half the
    squares of the batch's rows of z over B. Each epoch drops each entry of D^-1 (A + I), the two
    directions of an edge and the diagonal separately, with probability `node_dropout`, and divides
    the rest by 1 - node_dropout. All layers are `dim` wide, as in all configs of the papers here.

    This is Elliot's NGCF, and D^-1 (A + I) is the authors' own code's; the paper's formula has
    D^-1/2 A D^-1/2, with A + I before W1 only, and penalises what it trains, not z. The code of
    arXiv 2408.11767 takes the mean of the x_l (`combine="mean"`). Elliot leaves message dropout on
    while it evaluates, a slip (its Dropout modules stand in a plain list, which `eval()` does not
    reach): `evaluation_dropout` is the rate of it, drawn once per trial.
    """

    def __init__(
        self,
        catalog: base.Catalog,
        *,
        dim: int,
        layers: int = 3,
        node_dropout: float = 0.1,
        combine: str = "concat",
        evaluation_dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        rates = {"node_dropout": node_dropout, "evaluation_dropout": evaluation_dropout}
        for name, rate in rates.items():
            if not 0 <= rate < 1:
                raise InputError(f"{name}={rate} must be at least 0 and less than 1")
        self.node_dropout, self.evaluation_dropout = node_dropout, evaluation_dropout
        self.combine = choice("combine", combine, COMBINATIONS)

        def table(count: int) -> jax.Array:
            return initializers.init_table("xavier_uniform", rngs.params(), (count, dim))

        self.user, self.item = nnx.Param(table(catalog.n_users)), nnx.Param(table(catalog.n_items))
        self.layers = nnx.List([Layer(dim, rngs=rngs) for _ in range(layers)])
        pattern = weighted_graph.pattern(catalog.train_user, catalog.train_item, catalog.shape)
        self.whole = base.Frozen(pattern)
        noisy = evaluation_dropout > 0
        self.seed = base.Drawn(jax.random.bits(rngs.params())) if noisy else None

    def epoch(self, key: jax.Array) -> Adjacency:
        """Return D^-1 (A + I) after node dropout."""
        return self._adjacency(key if self.node_dropout else None)

    def _adjacency(self, key: jax.Array | None = None) -> Adjacency:
        pattern, dtype = self.whole.get_value(), self.user[...].dtype
        users, items = (1 / (count.astype(dtype) + 1) for count in weighted_graph.degrees(pattern))
        weights = [users[pattern.forward.rows], items[pattern.forward.columns], users, items]
        if key is not None:
            keys = jax.random.split(key, 4)
            weights = [
                draws.dropout(k, w, self.node_dropout) for k, w in zip(keys, weights, strict=True)
            ]
        of_users, of_items, users, items = weights
        to_users, to_items = (
            weighted_graph.weighted(pattern, of_users),
            weighted_graph.weighted(pattern, of_items).flip(),
        )
        return Adjacency(to_users, to_items, users[:, None], items[:, None])

    def loss(
        self,
        batch: dict[str, jax.Array],
        epoch: Adjacency,
        *,
        l_w: float,
        message_dropout: float = 0.1,
        key: jax.Array,
    ) -> jax.Array:
        tables = self._tables(epoch, key, message_dropout)
        reg = losses.penalty(losses.rows(tables, batch), "squares")
        return losses.bpr(losses.margin(tables, batch), "softplus") + l_w * reg

    def _tables(
        self, adjacency: Adjacency, key: jax.Array | None = None, rate: jax.Array | float = 0
    ) -> base.Tables:
        """Return z of users and items.

        Without a key there is no message dropout.
        """
        user, item = self.user[...], self.item[...]
        users, items = [user], [item]
        for number, layer in enumerate(self.layers):
            of_user = graph.propagate(adjacency.to_users, item) + adjacency.users * user
            of_item = graph.propagate(adjacency.to_items, user) + adjacency.items * item
            user, item = layer(user, of_user), layer(item, of_item)
            if key is not None:
                keys = jax.random.split(jax.random.fold_in(key, number))
                user, item = (
                    draws.dropout(keys[0], user, rate),
                    draws.dropout(keys[1], item, rate),
                )
            user, item = unit(user), unit(item)
            users.append(user)
            items.append(item)
        if self.combine == "mean":
            return propagation.average(users), propagation.average(items)
        return jnp.concatenate(users, axis=1), jnp.concatenate(items, axis=1)

    def tables(self) -> base.Tables:
        """Return z of users and items.

        They are [U, (L + 1) D] and [I, (L + 1) D], or D wide with `combine="mean"`.
        """
        key = None if self.seed is None else jax.random.key(self.seed[...])
        return self._tables(self._adjacency(), key, self.evaluation_dropout)

    def scores(self, tables: base.Tables, batch: dict[str, jax.Array]) -> jax.Array:
        return tables[0][batch["user"]] @ tables[1].T  # [B, I]
