"""Projected item features per modality, and options per modality."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.core import modality
from mmjax.core.errors import InputError
from mmjax.core.names import suggestion
from mmjax.ops import gathered_matmul
from mmjax.ops.normalize import unit
from mmjax.parallel import lazy_features
from mmjax.recommenders import base
from mmjax.recommenders.layers import initializers

Number = TypeVar("Number", int, float)


class Content(nnx.Module):
    """Features of one modality projected to width D.

    x = F W + b, features F [I, F] to x [I, D]; items without the modality give zeros. The features
    are frozen, or trained like the other parameters (`trainable`, as MMRec's embeddings from
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
            wide = lazy_features.array(features).astype(_wide(features.dtype))
            self.features: nnx.Variable[Any] = nnx.Param(wide)
        elif isinstance(features, lazy_features.LazyFeatures):
            self.features = base.Frozen(features)
        else:
            with jax.ensure_compile_time_eval():
                self.features = base.Frozen(jnp.asarray(features))
        # [D, F]: its gradient is then a product that reads the features row by row, on a CPU 2.7
        # times faster than the same numbers as [F, D].
        self.weight = nnx.Param(initializers.init_table(init, rngs.params(), (width, dim)).T)
        key = rngs.params()  # drawn without a bias too, so that later draws are the same
        self.bias = nnx.Param(initializers.init_bias(bias, key, width, dim)) if bias else None
        present = np.asarray(catalog.present.get(modality, True))
        self.present = None if present.all() else base.Frozen(present)

    def __call__(self, items: jax.Array | None = None) -> jax.Array:
        """Project all items, [I, D], or some, [B, D].

        For some items no other rows are read.
        """
        features, weight = self.features[...], self.weight[...]
        if items is None:
            x = jnp.matmul(features, weight.T, preferred_element_type=weight.dtype)
        else:
            x = gathered_matmul.project(features, weight, items)
        x = x if self.bias is None else x + self.bias[...][None]
        if self.present is None:
            return x
        present = jnp.asarray(self.present[...])
        return jnp.where((present if items is None else present[items])[:, None], x, 0)

    def weight_of(self, items: jax.Array) -> jax.Array:
        """Return 1 for items [B] with this modality, 0 for others."""
        if self.present is None:
            return jnp.ones(items.shape, self.weight[...].dtype)
        return jnp.asarray(self.present[...])[items].astype(self.weight[...].dtype)


def contents(catalog: base.Catalog, dim: int, *, rngs: nnx.Rngs, **options) -> nnx.List:
    """Build a `Content` for each modality, in their order."""
    names = catalog.modalities()
    return nnx.List([Content(catalog, name, dim, rngs=rngs, **options) for name in names])


def joined(catalog: base.Catalog, dim: int, *, rngs: nnx.Rngs, **options) -> Content:
    """Build one `Content` of all modalities side by side.

    An item that has none of them gives zeros.
    """
    names = catalog.modalities()
    present = np.broadcast_arrays(*(catalog.present.get(name, True) for name in names))
    joint_catalog = dataclasses.replace(
        catalog,
        features={"joined": catalog.concatenated()},
        present={"joined": np.any(present, axis=0)},
    )
    return Content(joint_catalog, "joined", dim, rngs=rngs, **options)


class Head(nnx.Module):
    """VBPR's content space, added to another model's scores.

    It adds <t_u, p_i>: p_i = n(F_i W + b) of all modalities side by side, n making unit vectors, F
    frozen, t drawn Xavier-uniform.
    """

    def __init__(self, catalog: base.Catalog, dim: int, *, rngs: nnx.Rngs):
        table = initializers.init_table("xavier_uniform", rngs.params(), (catalog.n_users, dim))
        self.user = nnx.Param(table)
        self.content = joined(catalog, dim, rngs=rngs)

    def beside(self, tables: base.Tables) -> base.Tables:
        """Return the tables (g_u | t_u) and (g_i | p_i).

        Their inner products are <g_u, g_i> + <t_u, p_i>.
        """
        users, items = tables
        users = jnp.concatenate([users, self.user[...]], axis=1)
        return users, jnp.concatenate([items, unit(self.content())], axis=1)


def by_modality(what: str, given: Mapping[str, Number], names: Sequence[str]) -> dict[str, Number]:
    """Return the values of a per-modality option by modality name.

    `given` has the option's own names; the result has those of the catalog. `visual` also means an
    only `image_feat`, see `modality`. A name that matches no modality is an error only while some
    modality has no value, since it may be that one misspelt.

    Raises:
      InputError: a name matches none of the modalities, or two match the same one.
    """
    values: dict[str, Number] = {}
    unknown = []
    for name, value in given.items():
        meant = modality.meant(name, names)
        if meant is None:
            unknown.append(name)
        elif meant in values:
            raise InputError(f"{what} names the modality {meant!r} twice")
        else:
            values[meant] = value
    if unknown and len(values) < len(names):
        raise InputError(f"{what} names {unknown[0]!r}{suggestion(unknown[0], names)}")
    return values


def shares(names: Sequence[str], given: Mapping[str, float], single: float) -> dict[str, float]:
    """Return the weight of each modality.

    A weight is as `given`; the modalities without one share the rest equally. A single modality has
    the weight `single`.

    Raises:
      InputError: see `by_modality`.
    """
    if len(names) == 1:
        return {names[0]: single}
    given = by_modality("weights", given, names)
    rest = (1 - sum(given.values())) / max(len(names) - len(given), 1)
    return {name: given.get(name, rest) for name in names}


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    """Return the dtype of trained features, at least float32."""
    return jnp.promote_types(dtype, jnp.float32)
