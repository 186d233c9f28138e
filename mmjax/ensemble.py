"""T trials of one recommender as one program: initialise, train an epoch, evaluate.

A trial is a seed and a set of traced hyper-parameters; everything that shapes the program (model,
width, layers, batch size, optimiser) is shared. State is a plain pytree with a leading trial axis,
{"params", "drawn", "opt", "epoch"}; a single run is T = 1 and takes the same path.
"""

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from mmjax import mesh as meshes
from mmjax import sampling
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
    frozen: Tree  # shared by all trials, on device
    keys: jax.Array  # [T]
    hypers: dict[str, jax.Array]  # each [T]
    data: sampling.Positives | None  # None where nothing is trained
    optimizer: optax.GradientTransformation
    settings: Settings
    mesh: Mesh
    trainable: bool
    init: Callable[[], Tree]

    @property
    def steps(self) -> int:
        return sampling.steps(self.data, self.settings.batch_size)

    def merge(self, state: Tree, frozen: Tree) -> nnx.Module:
        """The recommender of one trial."""
        parts = (nnx.State(state["params"]), nnx.State(state["drawn"]), frozen)
        return nnx.merge(self.graphdef, *parts)

    def epoch(self, steps: int | None = None) -> Callable[..., tuple[Tree, jax.Array]]:
        """A jitted `(state, hypers, keys, active, frozen, data) -> (state, losses [T, steps])`.

        Call it with `arguments(state)`; the state is donated. Of several trials, one that is not
        active keeps its state, its losses are zeros, and a CPU spends no time on it.

        Args:
          steps: the first ones of the epoch alone, to time them.
        """
        steps = steps or self.steps

        def one(state: Tree, hyper: dict, key: jax.Array, active: jax.Array, *shared: Tree):
            if len(self.keys) == 1:
                return train(state, hyper, key, *shared)
            turn = lambda carry: train(carry[0], hyper, key, *shared)  # noqa: E731
            return _if(active, turn, (state, jnp.zeros(steps)))

        def train(state: Tree, hyper: dict, key: jax.Array, frozen: Tree, data: sampling.Positives):
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

        return jax.jit(self._lift(one, 4), donate_argnums=0)

    @cached_property
    def program(self) -> Any:
        """`epoch`, compiled; nothing is allocated for it."""
        return self.epoch().lower(*self.arguments(self.shapes())).compile()

    def shapes(self) -> Tree:
        """The state that `init` gives, as shapes and where they lie."""
        where = meshes.replicated(self.mesh)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            jax.eval_shape(self.init),
        )

    def arguments(self, state: Tree, active: Sequence[bool] | None = None) -> tuple:
        """Of `epoch`; all T trials are active unless said otherwise."""
        return state, self.hypers, self.keys, self.flags(active), self.frozen, self.data

    def flags(self, active: Sequence[bool] | None = None) -> jax.Array:
        """Which trials are active, [T], on the devices; all if not said otherwise."""
        active = np.ones(len(self.keys), bool) if active is None else np.asarray(active)
        return jax.device_put(active, meshes.replicated(self.mesh))

    def evaluate(self, cutoffs: Sequence[int], *, map_capped: bool) -> Callable[..., dict]:
        """A jitted `(state, active, frozen, chunks) -> ranking.rank's results`, each with a trial
        axis. Of several trials, one that is not active has zeros, and costs a CPU nothing."""

        def one(state: Tree, active: jax.Array, frozen: Tree, chunks: ranking.Chunks) -> dict:
            def rank(_: Any = None) -> dict:
                model = self.merge(state, frozen)
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
            return _if(active, rank, nothing)

        return jax.jit(self._lift(one, 2))

    def _lift(self, function: Callable, batched: int) -> Callable:
        return over_trials(function, batched, in_turn=meshes.is_cpu(self.mesh))

    def _split_rows(self, array: jax.Array) -> jax.Array:
        """Spreads rows over the mesh's data axis, where they divide."""
        if self.mesh.size == 1 or array.shape[0] % self.mesh.shape["data"]:
            return array
        return jax.lax.with_sharding_constraint(array, meshes.rows(self.mesh))


def over_trials(function: Callable, batched: int, *, in_turn: bool) -> Callable:
    """Lifts a function of one trial to T trials: its first `batched` arguments get a trial axis.

    Accelerators run the trials side by side (vmap). A CPU runs them in turn: one trial keeps its
    cores busy, the tables of one stay in cache, and each trial is bit for bit what it is alone.
    """

    def call(*args: Any) -> Any:
        trials, shared = args[:batched], args[batched:]
        if jax.tree.leaves(trials)[0].shape[0] == 1:
            out = function(*jax.tree.map(lambda x: x[0], trials), *shared)
            return jax.tree.map(lambda x: x[None], out)
        if in_turn:
            return jax.lax.map(lambda own: function(*own, *shared), trials)
        return jax.vmap(lambda *own: function(*own, *shared))(*trials)

    return call


def _if(active: jax.Array, function: Callable[[Tree], Tree], otherwise: Tree) -> Tree:
    """`function(otherwise)` where a trial is active, else `otherwise`: a loop of one turn or none.

    A `cond` would do, but compiles SMORE's step otherwise than that of a single trial, to other
    last bits.
    """
    return jax.lax.fori_loop(0, active.astype(jnp.int32), lambda _, x: function(x), otherwise)


def build(
    recommender: type[nnx.Module],
    catalog: core.Catalog,
    options: Mapping[str, Any],
    *,
    seeds: Sequence[int],
    hypers: Mapping[str, Sequence[float]],
    settings: Settings,
    mesh: Mesh,
) -> Ensemble:
    """Builds T = len(seeds) trials.

    Args:
      recommender: a class that fulfils the contract of `recommenders.core`.
      options: keyword arguments of its `__init__`.
      hypers: "lr" and the keyword arguments of its `loss`, T values each.

    Raises:
      InputError: an unknown sampler or optimiser, or unusable interactions.
      ValueError: not T values of a hyper-parameter.
    """
    for name, values in hypers.items():
        if len(values) != len(seeds):
            raise ValueError(f"{len(seeds)} seeds but {len(values)} values of {name}")
    core.choice("sampler", settings.sampler, sampling.SAMPLERS)
    optimizer = parse_optimizer(settings.optimizer)
    trainable, data = hasattr(recommender, "loss"), None
    if trainable:  # what is not trained draws no negatives, and may have users without any
        data = sampling.positives(catalog.train_user, catalog.train_item, catalog.n_users)
        settings = replace(settings, batch_size=min(settings.batch_size, len(data.user)))
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    shared: dict[str, Any] = {}  # what constructing one trial finds to be the same for all

    def draw(key: jax.Array) -> Tree:
        model = recommender(catalog, **options, rngs=nnx.Rngs(params=jax.random.fold_in(key, 0)))
        shared["graphdef"], params, drawn, shared["frozen"] = nnx.split(
            model, nnx.Param, core.Drawn, ...
        )
        params, drawn = nnx.to_pure_dict(params), nnx.to_pure_dict(drawn)
        return {"params": params, "drawn": drawn, "opt": optimizer.init(params)}

    # Traced once. What it read of the catalogue (features of a hundred megabytes, say) becomes an
    # argument: inside the program such a constant takes XLA seconds and several copies.
    drawn, like = jax.make_jaxpr(draw, return_shape=True)(keys[0])
    structure = jax.tree.structure(like)

    def redraw(key: jax.Array, constants: Sequence[jax.Array]) -> Tree:
        return structure.unflatten(jax.core.eval_jaxpr(drawn.jaxpr, constants, key))

    everywhere = meshes.replicated(mesh)
    in_turn = meshes.is_cpu(mesh)
    initialise = jax.jit(over_trials(redraw, 1, in_turn=in_turn), out_shardings=everywhere)
    constants = jax.device_put(drawn.consts, everywhere)

    def init() -> Tree:
        epoch = jnp.zeros(len(seeds), jnp.int32)
        return initialise(keys, constants) | {"epoch": jax.device_put(epoch, everywhere)}

    return Ensemble(
        graphdef=shared["graphdef"],
        frozen=jax.device_put(shared["frozen"], everywhere),
        keys=jax.device_put(keys, everywhere),
        hypers={
            name: jax.device_put(jnp.asarray(values, jnp.float32), everywhere)
            for name, values in hypers.items()
        },
        data=jax.device_put(data, everywhere),
        optimizer=optimizer,
        settings=settings,
        mesh=mesh,
        trainable=trainable,
        init=init,
    )


def parse_optimizer(text: str) -> optax.GradientTransformation:
    """An optax chain from e.g. `"clip_by_global_norm(1.0), scale_by_adam(b1=0.9)"`.

    The loop multiplies the chain's result by minus the learning rate, so the parts are optax's
    transformations (`scale_by_...`, `clip_by_...`, `add_decayed_weights`), not whole optimisers.

    Raises:
      InputError: the text is no list of calls with literal arguments, or optax lacks a name.
    """
    try:
        tree = ast.parse(f"({text},)", mode="eval").body
        parts = []
        for call in tree.elts:
            positional = [ast.literal_eval(a) for a in call.args]
            named = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
            parts.append(getattr(optax, call.func.id)(*positional, **named))
        if not all(isinstance(part, optax.GradientTransformation) for part in parts):
            raise TypeError("not a gradient transformation")
    except (SyntaxError, AttributeError, ValueError, TypeError) as error:
        raise InputError(
            f"optimizer {text!r} is not a list of optax transformations such as "
            f"'clip_by_global_norm(1.0), scale_by_adam()': {error}"
        ) from None
    return optax.chain(*parts)


def pick(tree: Tree, trial: int) -> Tree:
    """One trial's part of a tree with a trial axis, on the host."""
    return jax.tree.map(lambda x: np.asarray(x[trial]), tree)
