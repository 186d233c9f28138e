"""MMGCN: a user-item graph network in each modality, averaged."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.core.errors import InputError
from mmjax.ops import graph
from mmjax.ops.normalize import unit
from mmjax.parallel.lazy_features import by_rows
from mmjax.recommenders import base
from mmjax.recommenders.layers import dense, initializers, projection, propagation

LATENT = 256  # default width of projected features


class MMGCN(nnx.Module):
    """MMGCN: mean over modalities of propagated content.

    Wei et al., MM 2019: s = <z_u, z_i>, z the mean over modalities of their last states x_L.

    n makes rows unit vectors, A is the mean over neighbours (items of a user, users of an item) and
    Z are id embeddings. In each modality, with a table P of the users and frozen features F,

        x_0 = n([P; F W + b]),  or n([P; F]) where the `latent` size is 0
        h = leaky(A x_(l-1) W_l),  y = leaky(x_(l-1) V_l + v_l) + Z,  x_l = leaky([h | y] G_l + g_l)

    or x_l = leaky(h G_l + g_l + y) without `concat`. The loss is

        BPR + l_w [mean Z_u^2 + mean Z_ij^2 over rows of the batch + mean P_1^2],

    P_1 the whole table of the first modality. `latent` is one size, or sizes by name and 256 for
    those that it does not name; published are 256 for images and the bare text. An item without a
    modality has x_0 = 0.

    A x W is (A x) W or A (x W), whichever multiplies fewer rows by W. The last step computes only
    the rows of the batch.

    Elliot draws uniform tables (`init="xavier_uniform"`) and offers both kinds of `concat`; MMRec
    always concatenates, since its switch is the text "False". MMRec keeps Z and every P as plain
    tensors that no optimiser sees, so that they stay as they were drawn: `untrained_tables`. W_l,
    V_l and G_1 are drawn as the tables are, G_l from the second on by `merge_init`: as torch draws
    a Linear in MMRec, as the tables in Elliot; W and all biases are torch's. Z is drawn as one
    table of users and items in MMRec (`joint`), as two in Elliot. Both predict from tables kept
    from before the last step; here they are those of the present parameters.
    """

    def __init__(
        self,
        catalog: base.Catalog,
        *,
        dim: int,
        layers: int = 3,
        latent: int | Mapping[str, int] = LATENT,
        concat: bool = True,
        untrained_tables: bool = False,
        init: str = "xavier_normal",
        merge_init: str = "linear",
        joint: bool = True,
        rngs: nnx.Rngs,
    ):
        if layers < 1:
            raise InputError(f"layers={layers} must be at least 1")
        self.untrained = untrained_tables
        names = catalog.modalities()
        sizes = dict.fromkeys(names, latent) if isinstance(latent, int) else latent
        sizes = projection.by_modality("latent", sizes, names)
        for name, size in sizes.items():
            if size < 0:
                raise InputError(f"latent size {size} of {name!r} must be 0 or more")

        variable = base.Drawn if untrained_tables else nnx.Param

        def table(rows: int, width: int) -> nnx.Variable:
            return variable(initializers.init_table(init, rngs.params(), (rows, width)))

        tables = initializers.init_tables(init, rngs, catalog.shape, dim, joint)
        self.user, self.item = (variable(table) for table in tables)
        options: dict[str, Any] = {"dim": dim, "concat": concat, "init": init, "rngs": rngs}
        options["merge_inits"] = [init] + [merge_init] * (layers - 1)
        self.modalities = nnx.List(
            [Modality(catalog, name, sizes.get(name, LATENT), table, **options) for name in names]
        )
        user, item, dtype = catalog.train_user, catalog.train_item, self.user[...].dtype
        mean: dict[str, Any] = {"norm": "left", "dtype": dtype}
        self.to_users = base.Frozen(graph.bipartite(user, item, catalog.shape, **mean))
        self.to_items = base.Frozen(graph.bipartite(item, user, catalog.shape[::-1], **mean))

    def epoch(self, key: jax.Array | None) -> list[base.Tables]:
        """Compute the parts of the first layer that never change.

        Of each modality: x_0 of the users and A x_0 of the items. Empty where the tables are
        trained.
        """
        if not self.untrained:
            return []
        users = [unit(modality.preference[...]) for modality in self.modalities]
        return [(u, graph.propagate(self.to_items.get_value(), u)) for u in users]

    def loss(
        self, batch: dict[str, jax.Array], epoch: list[base.Tables], *, l_w: float, key: Any
    ) -> jax.Array:
        user, item = batch["user"], jnp.concatenate([batch["pos"], batch["neg"]])
        z_u, z_i = self._states(epoch, user, item)
        z_pos, z_neg = jnp.split(z_i, 2)
        bpr = jax.nn.softplus(-(z_u * (z_pos - z_neg)).sum(axis=-1)).mean()
        penalised = self.user[...][user], self.item[...][item], self.modalities[0].preference[...]
        return bpr + l_w * sum(jnp.square(x).mean() for x in penalised)

    def tables(self) -> base.Tables:
        """Return users [U, D] and items [I, D]."""
        return self._states(self.epoch(None), slice(None), slice(None))

    def _states(
        self, ready: list[base.Tables], user: jax.Array | slice, item: jax.Array | slice
    ) -> base.Tables:
        """Return z of the given users and items.

        `ready` is the result of `epoch`.
        """
        to_users, to_items = self.to_users.get_value(), self.to_items.get_value()
        of_users, of_items = [], []
        for m, modality in enumerate(self.modalities):
            u, aggregated = ready[m] if ready else (unit(modality.preference[...]), None)
            i, last = modality.items(), len(modality.layers) - 1
            for depth, layer in enumerate(modality.layers):
                users, items = (user, item) if depth == last else (slice(None), slice(None))
                u, i, aggregated = (
                    layer(layer.messages(to_users, i)[users], u[users], self.user[...][users]),
                    layer(
                        layer.messages(to_items, u, aggregated)[items],
                        i[items],
                        self.item[...][items],
                    ),
                    None,
                )
            of_users.append(u)
            of_items.append(i)
        return propagation.average(of_users), propagation.average(of_items)

    def scores(self, tables: base.Tables, batch: dict[str, jax.Array]) -> jax.Array:
        return tables[0][batch["user"]] @ tables[1].T  # [B, I]


class Modality(nnx.Module):
    """User table, features and layers of one modality."""

    def __init__(
        self,
        catalog: base.Catalog,
        name: str,
        latent: int,
        table: Callable[[int, int], nnx.Variable],
        *,
        dim: int,
        merge_inits: Sequence[str],  # one for each layer
        rngs: nnx.Rngs,
        **options,
    ):
        self.projected, features = latent > 0, catalog.features[name]
        if latent:
            self.content: Any = projection.Content(catalog, name, latent, rngs=rngs)
        else:
            wide = jnp.promote_types(features.dtype, jnp.float32)
            self.content = base.Frozen(by_rows(lambda x: unit(x.astype(wide)), features))
        width = latent or features.shape[1]
        self.preference = table(catalog.n_users, width)
        widths = [width] + [dim] * (len(merge_inits) - 1)
        self.layers = nnx.List(
            Layer(width, dim, merge_init=merge_init, rngs=rngs, **options)
            for width, merge_init in zip(widths, merge_inits, strict=True)
        )

    def items(self) -> jax.Array:
        """Return x_0 of the items."""
        return unit(self.content()) if self.projected else self.content[...]


class Layer(nnx.Module):
    """MMGCN layer from states [N, C] to states [N, D].

    Users and items share its weights.
    """

    def __init__(
        self, width: int, dim: int, *, concat: bool, init: str, merge_init: str, rngs: nnx.Rngs
    ):
        self.concat, self.width = concat, width
        self.message = dense.linear(width, width, init=init, bias=False, rngs=rngs)
        self.own = dense.linear(width, dim, init=init, rngs=rngs)
        self.merge = dense.linear(width + dim * concat, dim, init=merge_init, rngs=rngs)

    def messages(self, mean: graph.Graph, x: jax.Array, read: jax.Array | None = None) -> jax.Array:
        """Return A x W [N, C] from the other side's states x.

        x is [M, C], A [N, M]. `read` is A x where it is known already.
        """
        rows, columns = mean.shape
        if read is None and rows >= columns:
            return graph.propagate(mean, self.message(x))
        return self.message(graph.propagate(mean, x) if read is None else read)

    def __call__(self, messages: jax.Array, x: jax.Array, ids: jax.Array) -> jax.Array:
        h, y = jax.nn.leaky_relu(messages), jax.nn.leaky_relu(self.own(x)) + ids
        if not self.concat:
            return jax.nn.leaky_relu(self.merge(h) + y)
        assert self.merge.bias is not None
        of_h, of_y = jnp.split(self.merge.kernel[...], [self.width])
        return jax.nn.leaky_relu(h @ of_h + y @ of_y + self.merge.bias[...][None])
