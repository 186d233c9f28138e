"""Build an ensemble of trials from a recommender and its catalogues.

The ensemble is laid out on a mesh.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from mmjax.core.names import choice
from mmjax.ops import graph
from mmjax.parallel import mesh as meshes
from mmjax.parallel import table_sharding, trial_axis
from mmjax.parallel.lazy_features import LazyFeatures
from mmjax.recommenders import base
from mmjax.training import ensemble, optimizer, sampling

Tree = Any


def build(
    recommender: Callable[..., nnx.Module],
    catalog: base.Catalog | Sequence[base.Catalog],
    options: Mapping[str, Any],
    *,
    seeds: Sequence[int],
    hypers: Mapping[str, Sequence[float]],
    settings: ensemble.Settings,
    mesh: Mesh,
    variant: Sequence[int] | None = None,
    put: meshes.Put = meshes.put,
) -> ensemble.Ensemble:
    """Build an ensemble of T = len(seeds) trials.

    Args:
      recommender: a class that fulfils the contract of `recommenders.base`.
      catalog: one, or several that differ only in the values of their features.
      options: keyword arguments of the recommender's `__init__`.
      hypers: "lr" and the keyword arguments of the recommender's `loss`, T values each.
      variant: the index of each trial's catalogue.
      put: or `meshes.plan`, which puts nothing on devices: the ensemble can then compile its
        programs and not run them.

    Raises:
      InputError: an unknown sampler or optimiser, unusable interactions, or a mesh that cannot
        split T trials.
      ValueError: a hyper-parameter or `variant` does not have T values.
      trial_axis.Unlike: the catalogues make different programs of the recommender.
    """
    catalogs = [catalog] if isinstance(catalog, base.Catalog) else list(catalog)
    choice("sampler", settings.sampler, sampling.SAMPLERS)
    chain = optimizer.parse(settings.optimizer)
    trainable, data = hasattr(recommender, "loss"), None
    if trainable:  # without training there are no negatives, so users may have every item
        first = catalogs[0]
        data = sampling.positives(first.train_user, first.train_item, first.n_users)
        settings = replace(settings, batch_size=min(settings.batch_size, len(data.user)))

    def construct(catalog: base.Catalog) -> tuple:
        """Trace the construction of one trial, once.

        The arrays of the catalogue that initialising reads (features of a hundred megabytes, say)
        become arguments. As constants inside the program they would take XLA seconds and several
        copies. Lazy features become arguments as well.
        """
        shared: list[Any] = []  # graphdef and frozen arrays, the same for all trials
        lazy = {k: x for k, x in catalog.features.items() if isinstance(x, LazyFeatures)}

        def draw(key: jax.Array, given: Mapping[str, jax.Array]) -> Tree:
            rngs = nnx.Rngs(params=jax.random.fold_in(key, 0))
            bound = {name: lazy[name].within(x) for name, x in given.items()}
            bound_catalog = replace(catalog, features={**catalog.features, **bound})
            model = recommender(bound_catalog, **options, rngs=rngs)
            graphdef, *parts = nnx.split(model, nnx.Param, base.Drawn, ...)
            params, drawn = (nnx.to_pure_dict(part) for part in parts[:2])
            shared[:] = graphdef, parts[2]
            return {"params": params, "drawn": drawn, "opt": chain.init(params)}

        given = {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in lazy.items()}
        traced, shapes = jax.make_jaxpr(draw, return_shape=True)(jax.random.key(0), given)
        return traced, shapes, _needed(traced, [lazy[k] for k in sorted(lazy)]), *shared

    users, items = catalogs[0].shape
    layout = table_sharding.Layout(mesh, frozenset((users, items, users + items)))
    with meshes.host_staging(mesh):
        drawn, like, needed, graphdefs, frozen = zip(*map(construct, catalogs), strict=True)
        if (
            any(entry != graphdefs[0] for entry in graphdefs)
            or len({str(d.jaxpr) for d in drawn}) > 1
        ):
            raise trial_axis.Unlike("these catalogues make different programs")
        frozen, varied = trial_axis.stack(frozen)
        frozen, like_frozen = graph.place(frozen, layout, varied, put)
        constants, varied_constants = trial_axis.stack(
            [
                [*entry.consts, *filter(None, given)]
                for entry, given in zip(drawn, needed, strict=True)
            ]
        )
        constants, like_constants = graph.place(constants, layout, varied_constants, put)

    def redraw(key: jax.Array, variant: jax.Array, constants: Sequence[jax.Array]) -> Tree:
        arrays = trial_axis.choose(constants, varied_constants, variant)
        arrays = layout.unpad(arrays, like_constants)
        if not trainable:  # a solver, not a random table: every device does the same
            arrays = [layout.constrain(x) for x in arrays]
        count = len(drawn[0].consts)
        rows = iter(arrays[count:])
        given = [next(rows) if x else 0 for x in needed[0]]
        values = jax.core.eval_jaxpr(drawn[0].jaxpr, arrays[:count], key, *given)
        if not trainable:
            values = [layout.constrain(x) for x in values]
        return layout.pad(jax.tree.unflatten(jax.tree.structure(like[0]), values))

    mapped = trial_axis.over_trials(redraw, 2, mesh)
    mapped = jax.jit(
        mapped, out_shardings=table_sharding.shardings(layout.padded_shapes(like[0], 1))
    )
    trials = ensemble.Ensemble(
        graphdef=graphdefs[0],
        frozen=frozen,
        varied=varied,
        keys=jnp.zeros(0),  # set by `given` below
        hypers={},
        variant=jnp.zeros(0),
        data=put(data, meshes.replicated(mesh)),
        optimizer=chain,
        settings=settings,
        layout=layout,
        like=(like[0], like_frozen),
        trainable=trainable,
        initialise=lambda keys, variant: mapped(keys, variant, constants),
    )
    return trials.given(seeds, hypers, variant)


def _needed(traced: Any, unread: Sequence[LazyFeatures]) -> list[LazyFeatures | None]:
    """Return the lazy features that the program reads.

    The others are None. Lazy features are the program's arguments from the second on.
    """
    used = {id(var) for eqn in traced.jaxpr.eqns for var in eqn.invars}
    used |= {id(var) for var in traced.jaxpr.outvars}
    return [
        x if id(var) in used else None
        for x, var in zip(unread, traced.jaxpr.invars[1:], strict=True)
    ]
