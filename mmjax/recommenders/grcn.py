"""GRCN: a user-item graph whose edges are weighted by content."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.core.errors import InputError
from mmjax.core.names import choice
from mmjax.ops import weighted_graph
from mmjax.ops.normalize import unit
from mmjax.recommenders import base, losses
from mmjax.recommenders.layers import initializers, projection

WEIGHT_MODES = ("confid", "max", "mean")
CONFIDENCES = ("source", "target")
CONTENT_PENALTIES = ("weighted", "first_table", "unweighted")


class GRCN(nnx.Module):
    """GRCN: user-item graph refined by preferences in each modality.

    Wei et al., MM 2020: s = <[e_u | x_1,u | ...], [e_i | x_1,i | ...]>, parts side by side.

    n makes rows unit vectors. In each modality, with a table P of the users and frozen features F,

        p_0 = n(P),  f = n(leaky(F W + b)),  p_t = n(p_t-1 + A_t f)  for t = 1..`routings`
        x_u = p + A f,  x_i = f + B p

    where A_ui is the softmax of <p_u, f_i> over the items i of u and B_iu that over the users u of
    i; A_t takes p_t-1, A and B the last p. Then e = z_0 + ... + z_L are states on the graph with
    the weights of all modalities,

        z_0 = n(Z),  z_u,l+1 = sum_i w(u <- i) z_i,l,  z_i,l+1 = sum_u w(i <- u) z_u,l
        w(u <- i) = relu max_m c_m,i A_m,ui,           w(i <- u) = relu max_m c_m,u B_m,iu

    with learned confidences c: `weight_mode="confid"`. "max" has no c and "mean" the mean instead;
    `pruning` is the relu. The loss is

        BPR + l_w [mean Z_u^2 + mean Z_ij^2 + sum_m mean P_m,u^2],  over rows of the batch.

    An item without a modality has f = 0: all of its users count the same there.

    MMRec (two layers) adds l_w mean P_1^2 over the whole table of the first modality
    (`content_penalty="first_table"`). Its routings send messages to the items and read the users',
    so that they change nothing: its numbers are those of `routings=0`. Elliot makes each z_l+1 unit
    vectors (`normalize_layers`), multiplies with c of the end that receives, c_m,u in w(u <- i)
    (`confidence="target"`), does not multiply P's penalty by l_w ("unweighted"), and looks up the
    weights w(i <- u) in another order than it computed them, so that they belong to other edges:
    that is a slip, and no option. Z is drawn as one table of users and items in MMRec (`joint`), as
    two in Elliot. Both predict from tables kept from before the last step; here they are those of
    the present parameters.
    """

    def __init__(
        self,
        catalog: base.Catalog,
        *,
        dim: int,
        content_dim: int = 64,
        layers: int = 2,
        routings: int = 3,
        weight_mode: str = "confid",
        confidence: str = "source",
        pruning: bool = True,
        normalize_layers: bool = False,
        content_penalty: str = "weighted",
        init: str = "xavier_normal",
        projection_init: str = "xavier_normal",
        joint: bool = True,
        rngs: nnx.Rngs,
    ):
        if layers < 0 or routings < 0:
            raise InputError(f"layers={layers} and routings={routings} must not be negative")
        self.layers, self.routings, self.pruning = layers, routings, pruning
        self.normalize_layers = normalize_layers
        self.weight_mode = choice("weight_mode", weight_mode, WEIGHT_MODES)
        self.of_source = choice("confidence", confidence, CONFIDENCES) == "source"
        self.content_penalty = choice("content_penalty", content_penalty, CONTENT_PENALTIES)
        names, nodes = catalog.modalities(), sum(catalog.shape)

        def table(rows: int, columns: int) -> nnx.Param:
            table = initializers.init_table(init, rngs.params(), (rows, columns))
            return nnx.Param(table)

        tables = initializers.init_tables(init, rngs, catalog.shape, dim, joint)
        self.n_users, self.node = catalog.n_users, nnx.Param(jnp.concatenate(tables))
        self.confidence = table(nodes, len(names)) if weight_mode == "confid" else None
        self.preferences = nnx.List([table(catalog.n_users, content_dim) for _ in names])
        self.contents = projection.contents(catalog, content_dim, init=projection_init, rngs=rngs)
        pattern = weighted_graph.pattern(catalog.train_user, catalog.train_item, catalog.shape)
        self.pattern = base.Frozen(pattern)

    def loss(self, batch: dict[str, jax.Array], epoch: Any, *, l_w: float, key: Any) -> jax.Array:
        bpr = jax.nn.softplus(-losses.margin(self.tables(), batch)).mean()
        user, node = batch["user"], self.node[...]
        items = jnp.concatenate([batch["pos"], batch["neg"]]) + self.n_users
        ids = jnp.square(node[user]).mean() + jnp.square(node[items]).mean()
        content = sum(jnp.square(table[...][user]).mean() for table in self.preferences)
        if self.content_penalty == "unweighted":
            return bpr + l_w * ids + content
        if self.content_penalty == "first_table":
            content += jnp.square(self.preferences[0][...]).mean()
        return bpr + l_w * (ids + content)

    def tables(self) -> base.Tables:
        """Return users and items.

        They are [U, D + M C] and [I, D + M C], C = `content_dim`.
        """
        # Arrays [E] of edge weights are sorted by user in `to_users`, by item in `to_items`.
        of_users = self.pattern.get_value()  # edges by user
        of_items = of_users.flip()  # edges by item
        by_item = of_users.transpose.order
        users, items, to_users, to_items = [], [], [], []
        for preference, content in zip(self.preferences, self.contents, strict=True):
            p, f = unit(preference[...]), unit(jax.nn.leaky_relu(content()))
            for _ in range(self.routings):
                attention = weighted_graph.softmax(
                    of_users, weighted_graph.products(of_users, p, f)
                )
                p = unit(p + weighted_graph.aggregate(of_users, attention, f))
            logits = weighted_graph.products(of_users, p, f)
            to_users.append(weighted_graph.softmax(of_users, logits))
            to_items.append(weighted_graph.softmax(of_items, logits[by_item]))
            users.append(p + weighted_graph.aggregate(of_users, to_users[-1], f))
            items.append(f + weighted_graph.aggregate(of_items, to_items[-1], p))
        confidences: Sequence[jax.Array | None] = (None, None)
        if self.confidence is not None:
            confidences = jnp.split(self.confidence[...], [self.n_users])  # of users, of items
        from_items = self._weights(of_users, to_users, *confidences)
        from_users = self._weights(of_items, to_items, *confidences[::-1])
        user, item = jnp.split(unit(self.node[...]), [self.n_users])
        total = [user, item]
        for _ in range(self.layers):
            user, item = (
                weighted_graph.aggregate(of_users, from_items, item),
                weighted_graph.aggregate(of_items, from_users, user),
            )
            if self.normalize_layers:
                user, item = unit(user), unit(item)
            total = [total[0] + user, total[1] + item]
        return (
            jnp.concatenate([total[0], *users], axis=1),
            jnp.concatenate([total[1], *items], axis=1),
        )

    def _weights(
        self,
        pattern: weighted_graph.Pattern,
        attentions: list[jax.Array],
        readers: jax.Array | None,
        sources: jax.Array | None,
    ) -> jax.Array:
        """Return the weights w of the edges of `pattern`, [E].

        A row of `pattern` receives from its columns. `readers` [rows, M] are the confidences of the
        receiving nodes, `sources` [columns, M] those of the sending ones.
        """
        weights = jnp.stack(attentions)  # [M, E]
        if self.weight_mode == "confid":
            rows, columns = pattern.forward.rows, pattern.forward.columns
            assert readers is not None
            assert sources is not None
            confidence = sources[columns] if self.of_source else readers[rows]
            weights *= confidence.T
        weights = weights.mean(axis=0) if self.weight_mode == "mean" else weights.max(axis=0)
        return jax.nn.relu(weights) if self.pruning else weights

    def scores(self, tables: base.Tables, batch: dict[str, jax.Array]) -> jax.Array:
        return tables[0][batch["user"]] @ tables[1].T  # [B, I]
