"""Initialise, train and evaluate T trials of a recommender as one program.

A trial is a seed, a set of traced hyper-parameters and, where there are several catalogues, one of
them. All trials share what shapes the program (model, width, layers, batch size, optimiser). The
state is a plain pytree with a leading trial axis, {"params", "drawn", "opt", "epoch"}. A single run
is T = 1 and takes the same path.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from mmjax.core.errors import InputError
from mmjax.evaluation import ranking
from mmjax.parallel import mesh as meshes
from mmjax.parallel import table_sharding, trial_axis
from mmjax.training import sampling

Tree = Any


@dataclass(frozen=True)
class Settings:
    """Settings besides the model that shape the training program."""

    batch_size: int = 2048
    sampler: str = "interactions"
    optimizer: str = "scale_by_adam()"
    lr_decay: tuple[float, float] = (1.0, 50.0)  # rate times f0^(epoch / f1), MMRec's schedule
    part_steps: int = 0  # an epoch runs, and can be saved, in parts of so many steps; 0: one part


@dataclass(frozen=True)
class Ensemble:
    """T trials of one recommender, with their compiled programs.

    Build one with `assembly.build`.
    """

    graphdef: nnx.GraphDef
    frozen: Tree  # arrays that no trial changes, on device
    varied: frozenset[int]  # indices of its leaves that have a leading catalogue axis
    keys: jax.Array  # [T]
    hypers: dict[str, jax.Array]  # each [T]
    variant: jax.Array  # [T] int32, index of the catalogue
    data: sampling.Positives | None  # None for a recommender that is not trained
    optimizer: optax.GradientTransformation
    settings: Settings
    layout: table_sharding.Layout  # how tables are split over the mesh
    like: tuple[Tree, Tree]  # shapes of one trial's state without its epoch, and of `frozen`
    trainable: bool
    initialise: Callable[[jax.Array, jax.Array], Tree]  # (keys, variants) -> state
    programs: dict[tuple[str, int], Any] = field(default_factory=dict)  # compiled, by name and T

    @property
    def mesh(self) -> Mesh:
        return self.layout.mesh

    @property
    def steps(self) -> int:
        assert self.data is not None  # only what is trained has steps
        return sampling.steps(self.data, self.settings.batch_size)

    def init(self) -> Tree:
        """Return the state before the first epoch, with padded tables.

        See `table_sharding` for the padding.
        """
        with meshes.use(self.mesh):
            state = self.initialise(self.keys, self.variant)
        epoch = meshes.put(np.zeros(len(self.keys), np.int32), meshes.trials(self.mesh))
        return state | {"epoch": epoch}

    def merge(self, state: Tree, frozen: Tree) -> Any:
        """Build the recommender of one trial.

        `frozen` is that of one catalogue.
        """
        parts = (nnx.State(state["params"]), nnx.State(state["drawn"]), frozen)
        return nnx.merge(self.graphdef, *parts)

    def take(self, places: Sequence[int] | np.ndarray) -> "Ensemble":
        """Return the ensemble of the trials at these indices.

        Its programs are compiled once for each number of trials.
        """
        per_trial = (self.keys, self.hypers, self.variant)
        keys, hypers, variant = trial_axis.take(per_trial, np.asarray(places))
        return replace(self, keys=keys, hypers=hypers, variant=variant)

    def given(
        self,
        seeds: Sequence[int],
        hypers: Mapping[str, Sequence[float]],
        variant: Sequence[int] | None = None,
    ) -> "Ensemble":
        """Return an ensemble with one trial for each seed.

        The recommender and the catalogues stay the same.

        Raises:
          ValueError: the number of seeds is not the number of values of a hyper-parameter or of
            `variant`.
          InputError: the mesh cannot split this number of trials.
        """
        variant = [0] * len(seeds) if variant is None else variant
        for name, column in {**hypers, "variant": variant}.items():
            if len(column) != len(seeds):
                raise ValueError(f"{len(seeds)} seeds but {len(column)} values of {name}")
        if len(seeds) % self.mesh.shape["trial"]:
            raise InputError(
                f"the mesh splits trials over {self.mesh.shape['trial']} devices and there are "
                f"{len(seeds)}; a single run needs trial=1"
            )
        sharding = meshes.trials(self.mesh)
        values = {name: np.asarray(column, np.float32) for name, column in hypers.items()}
        keys = jax.jit(jax.vmap(jax.random.key), out_shardings=sharding)
        return replace(
            self,
            keys=keys(np.asarray(seeds, np.uint32)),
            hypers=meshes.put(values, sharding),
            variant=meshes.put(np.asarray(variant, np.int32), sharding),
        )

    def epoch(self, steps: int | None = None) -> Callable[..., tuple[Tree, jax.Array]]:
        """Return the jitted training program of one epoch.

        It is `(state, own, active, frozen, data) -> (state, losses [T, steps])`. Call it with
        `arguments(state)`; the state is donated. Of several trials, one that is not active keeps
        its state, its losses are zeros, and a CPU spends no time on it.

        Args:
          steps: run only the first steps of the epoch, to time them.
        """
        steps = steps or self.steps

        def train(state: Tree, own: tuple, frozen: Tree, data: sampling.Positives):
            redrawn = self._redraw(state, own, frozen)
            return self._run(state, redrawn, own, 0, steps, frozen, data)

        def one(state: Tree, own: tuple, active: jax.Array, *shared: Tree):
            if len(self.keys) == 1:
                return train(state, own, *shared)

            def turn(carry):
                return train(carry[0], own, *shared)

            return trial_axis.run_if(active, turn, (state, jnp.zeros(steps)))

        shardings = table_sharding.shardings(self.shapes()), meshes.replicated(self.mesh)
        mapped = trial_axis.over_trials(one, 3, self.mesh)
        return jax.jit(mapped, donate_argnums=0, out_shardings=shardings)

    def redraw(self) -> Callable[..., Tree]:
        """Return the jitted program `(state, own, frozen) -> redrawn`.

        `redrawn` holds what the recommenders draw or rebuild for an epoch; `part` keeps it through
        the epoch.
        """
        mapped = trial_axis.over_trials(self._redraw, 2, self.mesh)
        return jax.jit(mapped, out_shardings=meshes.trials(self.mesh))

    def part(self, steps: int) -> Callable[..., tuple[Tree, jax.Array]]:
        """Return the jitted training program of a part of an epoch.

        It is `(state, own, active, redrawn, first, frozen, data) -> (state, losses [T, steps])` for
        `steps` steps of the epoch, from its step `first` on; see `epoch`.
        """

        def one(state: Tree, own: tuple, active: jax.Array, redrawn: Tree, first, *shared: Tree):
            def train(carry: tuple[Tree, jax.Array]) -> tuple[Tree, jax.Array]:
                return self._run(carry[0], redrawn, own, first, steps, *shared)

            carry = (state, jnp.zeros(steps))
            return train(carry) if len(self.keys) == 1 else trial_axis.run_if(active, train, carry)

        shardings = table_sharding.shardings(self.shapes()), meshes.replicated(self.mesh)
        mapped = trial_axis.over_trials(one, 4, self.mesh)
        return jax.jit(mapped, donate_argnums=0, out_shardings=shardings)

    def _redraw(self, state: Tree, own: tuple, frozen: Tree) -> Tree:
        """Return what one trial's recommender draws or rebuilds for an epoch."""
        key, _, variant = own
        model = self.merge(self._whole(state), self._frozen(frozen, variant))
        epoch_key = jax.random.split(jax.random.fold_in(key, state["epoch"]), 3)[1]
        return model.epoch(epoch_key) if hasattr(model, "epoch") else {}

    def _run(
        self,
        state: Tree,
        redrawn: Tree,
        own: tuple,
        first: int | jax.Array,
        steps: int,
        frozen: Tree,
        data: sampling.Positives,
    ) -> tuple[Tree, jax.Array]:
        """Train one trial for several steps of an epoch.

        It takes `steps` steps from step `first` on. The last step of the epoch increases the
        epoch's number.

        Returns:
          The state and the losses [steps].
        """
        key, hyper, variant = own
        state, frozen = self._whole(state), self._frozen(frozen, variant)
        key = jax.random.fold_in(key, state["epoch"])
        batch_key, _, loss_key = jax.random.split(key, 3)
        factor, period = self.settings.lr_decay
        rate = hyper["lr"] * factor ** (state["epoch"] / period)
        options = {name: value for name, value in hyper.items() if name != "lr"}

        def step(carry: tuple[Tree, Tree], t: jax.Array) -> tuple[tuple[Tree, Tree], jax.Array]:
            params, opt = carry
            batch = sampling.batch(
                batch_key, t, data, self.settings.batch_size, self.settings.sampler
            )
            batch = jax.tree.map(self.layout.constrain_batch, batch) | {"step": t}

            def objective(params: Tree) -> jax.Array:
                model = self.merge(state | {"params": params}, frozen)
                return model.loss(batch, redrawn, **options, key=jax.random.fold_in(loss_key, t))

            loss, gradients = jax.value_and_grad(objective)(params)
            updates, opt = self.optimizer.update(gradients, opt, params)
            params = jax.tree.map(lambda p, u: p - rate.astype(p.dtype) * u, params, updates)
            return (params, opt), loss

        carry = (state["params"], state["opt"])
        numbers = first + jnp.arange(steps, dtype=jnp.uint32)
        (params, opt), losses = jax.lax.scan(step, carry, numbers)
        epoch = state["epoch"] + (first + steps == self.steps)
        trained = {"params": params, "opt": opt, "epoch": epoch}
        return self.layout.pad(state | trained), losses

    def parts(self, done: int = 0) -> list[range]:
        """Return the steps of each remaining part of an epoch.

        `done` steps are done. There is one part unless `part_steps` is set.
        """
        length = self.settings.part_steps or self.steps
        return [range(n, min(n + length, self.steps)) for n in range(done, self.steps, length)]

    @property
    def program(self) -> Any:
        """Return the compiled `epoch`, one for each T.

        Nothing is allocated for it.
        """
        return self._compiled("epoch", self.epoch, lambda: self.arguments(self.shapes()))

    @property
    def redraw_program(self) -> Any:
        """Return the compiled `redraw`, one for each T."""
        return self._compiled("redraw", self.redraw, self._of_redraw)

    def part_program(self, steps: int) -> Any:
        """Return the compiled `part`, one for each T and `steps`."""

        def arguments() -> tuple:
            state, per_trial, active, *shared = self.arguments(self.shapes())
            return (state, per_trial, active, self.redrawn_shapes(), self.place(0), *shared)

        return self._compiled(f"part of {steps}", lambda: self.part(steps), arguments)

    def place(self, step: int) -> jax.Array:
        """Put the number of a step on the devices."""
        return meshes.put(np.uint32(step), meshes.replicated(self.mesh))

    def redrawn_shapes(self) -> Tree:
        """Return shapes and shardings of the result of `redraw`."""
        with meshes.use(self.mesh):
            shapes = jax.eval_shape(self.redraw(), *self._of_redraw())
        abstract = functools.partial(jax.ShapeDtypeStruct, sharding=meshes.trials(self.mesh))
        return jax.tree.map(lambda x: abstract(x.shape, x.dtype), shapes)

    def _of_redraw(self) -> tuple:
        state, per_trial, _, frozen, _ = self.arguments(self.shapes())
        return state, per_trial, frozen

    def _compiled(self, name: str, make: Callable[[], Any], arguments: Callable[[], tuple]) -> Any:
        key = (name, len(self.keys))
        if key not in self.programs:
            with meshes.use(self.mesh):
                self.programs[key] = make().lower(*arguments()).compile()
        return self.programs[key]

    def shapes(self) -> Tree:
        """Return shapes and shardings of the state from `init`."""
        scalar = jax.ShapeDtypeStruct((), jnp.int32)
        return self.layout.padded_shapes(self.like[0] | {"epoch": scalar}, len(self.keys))

    def _whole(self, state: Tree) -> Tree:
        """Unpad one trial's state, or a part of it, for programs."""
        parts = {name: self.like[0][name] for name in state if name != "epoch"}
        return state | self.layout.unpad({name: state[name] for name in parts}, parts)

    def _frozen(self, frozen: Tree, variant: jax.Array) -> Tree:
        """Return the frozen arrays of one trial, unpadded for programs."""
        return self.layout.unpad(trial_axis.choose(frozen, self.varied, variant), self.like[1])

    def arguments(self, state: Tree, active: Sequence[bool] | np.ndarray | None = None) -> tuple:
        """Return the arguments of `epoch`; by default all trials are active.

        The second argument, `own`, has the keys, the hyper-parameters and the variants of the
        trials.
        """
        per_trial = (self.keys, self.hypers, self.variant)
        return state, per_trial, self.flags(active), self.frozen, self.data

    def flags(self, active: Sequence[bool] | np.ndarray | None = None) -> jax.Array:
        """Put the flags of the active trials [T] on the devices.

        All trials are active by default.
        """
        flags = np.ones(len(self.keys), bool) if active is None else np.asarray(active)
        return meshes.put(flags, meshes.trials(self.mesh))

    def evaluate(self, cutoffs: Sequence[int], *, map_capped: bool) -> jax.stages.Wrapped:
        """Return the jitted ranking program of the trials.

        It is `(state, variant, active, frozen, chunks) -> results`, where the results are those of
        `ranking.rank`, each with a trial axis. Of several trials, one that is not active has zeros,
        and costs a CPU no time.
        """

        def one(state: Tree, variant: jax.Array, active: jax.Array, frozen: Tree, chunks: Any):
            def rank(_: Any = None) -> dict:
                model = self.merge(self._whole(state), self._frozen(frozen, variant))
                return ranking.rank(
                    model.scores,
                    jax.tree.map(self.layout.constrain_ranking, model.tables()),
                    chunks,
                    cutoffs,
                    map_capped=map_capped,
                    constrain=self.layout.constrain_batch,
                )

            if len(self.keys) == 1:
                return rank()
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(rank))
            return trial_axis.run_if(active, rank, zeros)

        mapped = trial_axis.over_trials(one, 3, self.mesh)
        return jax.jit(mapped, out_shardings=meshes.replicated(self.mesh))


def pick(tree: Tree, trial: int) -> Tree:
    """Copy one trial's part of a tree to the host.

    The tree has a leading trial axis.
    """
    return jax.tree.map(lambda x: np.asarray(x[trial]), tree)
