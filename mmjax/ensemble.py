"""T trials of one recommender as one program: initialise, train an epoch, evaluate.

A trial is a seed, a set of traced hyper-parameters and, where several are given, one of the
catalogues; everything that shapes the program (model, width, layers, batch size, optimiser) is
shared. State is a plain pytree with a leading trial axis, {"params", "drawn", "opt", "epoch"}; a
single run is T = 1 and takes the same path.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from mmjax import lifting, optimizer, sampling
from mmjax import mesh as meshes
from mmjax.errors import InputError
from mmjax.evaluation import ranking
from mmjax.recommenders import core

Tree = Any


@dataclass(frozen=True)
class Settings:
    """What shapes the training program beside the model."""

    batch_size: int = 2048
    sampler: str = "interactions"
    optimizer: str = "scale_by_adam()"
    lr_decay: tuple[float, float] = (1.0, 50.0)  # rate times f0^(epoch / f1), MMRec's schedule


@dataclass(frozen=True)
class Ensemble:
    """The compiled parts share these; build one with `build`."""

    graphdef: nnx.GraphDef
    frozen: Tree  # what no trial changes, on device
    varied: frozenset[int]  # its leaves that have a leading axis of catalogues, by number
    keys: jax.Array  # [T]
    hypers: dict[str, jax.Array]  # each [T]
    variant: jax.Array  # [T] int32, which of the catalogues
    data: sampling.Positives | None  # None where nothing is trained
    optimizer: optax.GradientTransformation
    settings: Settings
    mesh: Mesh
    trainable: bool
    initialise: Callable[[jax.Array, jax.Array], Tree]  # of keys and variants
    programs: dict[int, Any] = field(default_factory=dict)  # `epoch`, compiled, by T

    @property
    def steps(self) -> int:
        return sampling.steps(self.data, self.settings.batch_size)

    def init(self) -> Tree:
        """The state before the first epoch."""
        epoch = jax.device_put(jnp.zeros(len(self.keys), jnp.int32), meshes.trials(self.mesh))
        return self.initialise(self.keys, self.variant) | {"epoch": epoch}

    def merge(self, state: Tree, frozen: Tree) -> nnx.Module:
        """The recommender of one trial; `frozen` is of one catalogue."""
        parts = (nnx.State(state["params"]), nnx.State(state["drawn"]), frozen)
        return nnx.merge(self.graphdef, *parts)

    def take(self, places: Sequence[int]) -> "Ensemble":
        """The trials at these places; they compile anew, once for each number of them."""
        own = (self.keys, self.hypers, self.variant)
        keys, hypers, variant = lifting.take(own, np.asarray(places), self.mesh)
        return replace(self, keys=keys, hypers=hypers, variant=variant)

    def given(
        self,
        seeds: Sequence[int],
        hypers: Mapping[str, Sequence[float]],
        variant: Sequence[int] | None = None,
    ) -> "Ensemble":
        """As many trials as there are seeds, of the same recommender and catalogues.

        Raises:
          ValueError: not as many values of a hyper-parameter, or of `variant`.
          InputError: the mesh cannot split so many trials.
        """
        variant = [0] * len(seeds) if variant is None else variant
        for name, values in {**hypers, "variant": variant}.items():
            if len(values) != len(seeds):
                raise ValueError(f"{len(seeds)} seeds but {len(values)} values of {name}")
        if len(seeds) % self.mesh.shape["trial"]:
            raise InputError(
                f"the mesh splits trials over {self.mesh.shape['trial']} devices and there are "
                f"{len(seeds)}; a single run needs trial=1"
            )
        where = meshes.trials(self.mesh)
        keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
        values = {name: jnp.asarray(each, jnp.float32) for name, each in hypers.items()}
        return replace(
            self,
            keys=jax.device_put(keys, where),
            hypers=jax.device_put(values, where),
            variant=jax.device_put(jnp.asarray(variant, jnp.int32), where),
        )

    def epoch(self, steps: int | None = None) -> Callable[..., tuple[Tree, jax.Array]]:
        """A jitted `(state, own, active, frozen, data) -> (state, losses [T, steps])`.

        Call it with `arguments(state)`; the state is donated. Of several trials, one that is not
        active keeps its state, its losses are zeros, and a CPU spends no time on it.

        Args:
          steps: the first ones of the epoch alone, to time them.
        """
        steps = steps or self.steps

        def one(state: Tree, own: tuple, active: jax.Array, *shared: Tree):
            if len(self.keys) == 1:
                return train(state, own, *shared)
            turn = lambda carry: train(carry[0], own, *shared)  # noqa: E731
            return lifting.run_if(active, turn, (state, jnp.zeros(steps)))

        def train(state: Tree, own: tuple, frozen: Tree, data: sampling.Positives):
            key, hyper, variant = own
            frozen = lifting.choose(frozen, self.varied, variant)
            key = jax.random.fold_in(key, state["epoch"])
            of_batches, of_epoch, of_loss = jax.random.split(key, 3)
            model = self.merge(state, frozen)
            redrawn = model.epoch(of_epoch) if hasattr(model, "epoch") else {}
            factor, period = self.settings.lr_decay
            rate = hyper["lr"] * factor ** (state["epoch"] / period)
            options = {name: value for name, value in hyper.items() if name != "lr"}

            def step(carry: tuple[Tree, Tree], t: jax.Array) -> tuple[tuple[Tree, Tree], jax.Array]:
                params, opt = carry
                batch = sampling.batch(
                    of_batches, t, data, self.settings.batch_size, self.settings.sampler
                )
                batch = jax.tree.map(self._split_rows, batch) | {"step": t}

                def objective(params: Tree) -> jax.Array:
                    model = self.merge(state | {"params": params}, frozen)
                    return model.loss(batch, redrawn, **options, key=jax.random.fold_in(of_loss, t))

                loss, gradients = jax.value_and_grad(objective)(params)
                updates, opt = self.optimizer.update(gradients, opt, params)
                params = jax.tree.map(lambda p, u: p - rate.astype(p.dtype) * u, params, updates)
                return (params, opt), loss

            carry = (state["params"], state["opt"])
            count = jnp.arange(steps, dtype=jnp.uint32)
            (params, opt), losses = jax.lax.scan(step, carry, count)
            after = {"params": params, "opt": opt, "epoch": state["epoch"] + 1}
            return state | after, losses

        return jax.jit(lifting.over_trials(one, 3, self.mesh), donate_argnums=0)

    @property
    def program(self) -> Any:
        """`epoch`, compiled once for each T; nothing is allocated for it."""
        count = len(self.keys)
        if count not in self.programs:
            arguments = self.arguments(self.shapes())
            self.programs[count] = self.epoch().lower(*arguments).compile()
        return self.programs[count]

    def shapes(self) -> Tree:
        """The state that `init` gives, as shapes and where they lie."""
        where = meshes.trials(self.mesh)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            jax.eval_shape(self.init),
        )

    def arguments(self, state: Tree, active: Sequence[bool] | None = None) -> tuple:
        """Of `epoch`; all T trials are active unless said otherwise."""
        own = (self.keys, self.hypers, self.variant)
        return state, own, self.flags(active), self.frozen, self.data

    def flags(self, active: Sequence[bool] | None = None) -> jax.Array:
        """Which trials are active, [T], on the devices; all if not said otherwise."""
        active = np.ones(len(self.keys), bool) if active is None else np.asarray(active)
        return jax.device_put(active, meshes.trials(self.mesh))

    def evaluate(self, cutoffs: Sequence[int], *, map_capped: bool) -> Callable[..., dict]:
        """A jitted `(state, variant, active, frozen, chunks) -> ranking.rank's results`, each with
        a trial axis. Of several trials, one that is not active has zeros, and costs a CPU nothing.
        """

        def one(state: Tree, variant: jax.Array, active: jax.Array, frozen: Tree, chunks: Any):
            def rank(_: Any = None) -> dict:
                model = self.merge(state, lifting.choose(frozen, self.varied, variant))
                return ranking.rank(
                    model.scores,
                    model.tables(),
                    chunks,
                    cutoffs,
                    map_capped=map_capped,
                    constrain=self._split_rows,
                )

            if len(self.keys) == 1:
                return rank()
            nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(rank))
            return lifting.run_if(active, rank, nothing)

        return jax.jit(lifting.over_trials(one, 3, self.mesh))

    def _split_rows(self, array: jax.Array) -> jax.Array:
        """Spreads rows over the mesh's data axis, where they divide."""
        if self.mesh.shape["data"] == 1 or array.shape[0] % self.mesh.shape["data"]:
            return array
        return jax.lax.with_sharding_constraint(array, meshes.rows(self.mesh))


def build(
    recommender: type[nnx.Module],
    catalog: core.Catalog | Sequence[core.Catalog],
    options: Mapping[str, Any],
    *,
    seeds: Sequence[int],
    hypers: Mapping[str, Sequence[float]],
    settings: Settings,
    mesh: Mesh,
    variant: Sequence[int] | None = None,
) -> Ensemble:
    """Builds T = len(seeds) trials.

    Args:
      recommender: a class that fulfils the contract of `recommenders.core`.
      catalog: one, or several that differ in nothing but the values of their features.
      options: keyword arguments of its `__init__`.
      hypers: "lr" and the keyword arguments of its `loss`, T values each.
      variant: the number of each trial's catalogue.

    Raises:
      InputError: an unknown sampler or optimiser, unusable interactions, or a mesh that cannot
        split T trials.
      ValueError: not T values of a hyper-parameter.
      lifting.Unlike: the catalogues make different programs of the recommender.
    """
    catalogs = [catalog] if isinstance(catalog, core.Catalog) else list(catalog)
    core.choice("sampler", settings.sampler, sampling.SAMPLERS)
    chain = optimizer.parse(settings.optimizer)
    trainable, data = hasattr(recommender, "loss"), None
    if trainable:  # what is not trained draws no negatives, and may have users without any
        first = catalogs[0]
        data = sampling.positives(first.train_user, first.train_item, first.n_users)
        settings = replace(settings, batch_size=min(settings.batch_size, len(data.user)))

    def construct(catalog: core.Catalog) -> tuple:
        """Traced once. What initialising reads of the catalogue (features of a hundred megabytes,
        say) becomes an argument: inside the program such a constant takes XLA seconds and several
        copies."""
        found: list[Any] = []  # what constructing one trial finds to be the same for all

        def draw(key: jax.Array) -> Tree:
            rngs = nnx.Rngs(params=jax.random.fold_in(key, 0))
            model = recommender(catalog, **options, rngs=rngs)
            graphdef, params, drawn, frozen = nnx.split(model, nnx.Param, core.Drawn, ...)
            found[:] = graphdef, frozen
            params, drawn = nnx.to_pure_dict(params), nnx.to_pure_dict(drawn)
            return {"params": params, "drawn": drawn, "opt": chain.init(params)}

        return *jax.make_jaxpr(draw, return_shape=True)(jax.random.key(0)), *found

    drawn, like, graphdefs, frozen = zip(*map(construct, catalogs), strict=True)
    if any(one != graphdefs[0] for one in graphdefs) or len({str(d.jaxpr) for d in drawn}) > 1:
        raise lifting.Unlike("these catalogues make different programs")
    everywhere = meshes.replicated(mesh)
    frozen, varied = lifting.stack(frozen)
    constants, varied_constants = lifting.stack([one.consts for one in drawn])
    constants = jax.device_put(constants, everywhere)

    def redraw(key: jax.Array, variant: jax.Array, constants: Sequence[jax.Array]) -> Tree:
        own = lifting.choose(constants, varied_constants, variant)
        return jax.tree.structure(like[0]).unflatten(jax.core.eval_jaxpr(drawn[0].jaxpr, own, key))

    lifted = jax.jit(lifting.over_trials(redraw, 2, mesh), out_shardings=meshes.trials(mesh))
    made = Ensemble(
        graphdef=graphdefs[0],
        frozen=jax.device_put(frozen, everywhere),
        varied=varied,
        keys=jnp.zeros(0),  # `given` says
        hypers={},
        variant=jnp.zeros(0),
        data=jax.device_put(data, everywhere),
        optimizer=chain,
        settings=settings,
        mesh=mesh,
        trainable=trainable,
        initialise=lambda keys, variant: lifted(keys, variant, constants),
    )
    return made.given(seeds, hypers, variant)


def pick(tree: Tree, trial: int) -> Tree:
    """One trial's part of a tree with a trial axis, on the host."""
    return jax.tree.map(lambda x: np.asarray(x[trial]), tree)
