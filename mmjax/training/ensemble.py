"""T trials of one recommender as one program: initialise, train an epoch, evaluate.

A trial is a seed, a set of traced hyper-parameters and, where several are given, one of the
catalogues; everything that shapes the program (model, width, layers, batch size, optimiser) is
shared. State is a plain pytree with a leading trial axis, {"params", "drawn", "opt", "epoch"}; a
single run is T = 1 and takes the same path.
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
    """What shapes the training program beside the model."""

    batch_size: int = 2048
    sampler: str = "interactions"
    optimizer: str = "scale_by_adam()"
    lr_decay: tuple[float, float] = (1.0, 50.0)  # rate times f0^(epoch / f1), MMRec's schedule
    part_steps: int = 0  # an epoch runs, and can be saved, in parts of so many steps; 0: whole


@dataclass(frozen=True)
class Ensemble:
    """The compiled parts share these; build one with `assembly.build`."""

    graphdef: nnx.GraphDef
    frozen: Tree  # what no trial changes, on device
    varied: frozenset[int]  # its leaves that have a leading axis of catalogues, by number
    keys: jax.Array  # [T]
    hypers: dict[str, jax.Array]  # each [T]
    variant: jax.Array  # [T] int32, which of the catalogues
    data: sampling.Positives | None  # None where nothing is trained
    optimizer: optax.GradientTransformation
    settings: Settings
    layout: table_sharding.Layout  # how tables lie on the mesh
    like: tuple[Tree, Tree]  # shapes of one trial's state without its epoch, and of what is frozen
    trainable: bool
    initialise: Callable[[jax.Array, jax.Array], Tree]  # of keys and variants
    programs: dict[tuple[str, int], Any] = field(default_factory=dict)  # compiled, by name and T

    @property
    def mesh(self) -> Mesh:
        return self.layout.mesh

    @property
    def steps(self) -> int:
        return sampling.steps(self.data, self.settings.batch_size)

    def init(self) -> Tree:
        """The state before the first epoch, at rest: see `table_sharding`."""
        with meshes.use(self.mesh):
            state = self.initialise(self.keys, self.variant)
        epoch = meshes.put(np.zeros(len(self.keys), np.int32), meshes.trials(self.mesh))
        return state | {"epoch": epoch}

    def merge(self, state: Tree, frozen: Tree) -> nnx.Module:
        """The recommender of one trial; `frozen` is of one catalogue."""
        parts = (nnx.State(state["params"]), nnx.State(state["drawn"]), frozen)
        return nnx.merge(self.graphdef, *parts)

    def take(self, places: Sequence[int]) -> "Ensemble":
        """The trials at these places; they compile anew, once for each number of them."""
        own = (self.keys, self.hypers, self.variant)
        keys, hypers, variant = trial_axis.take(own, np.asarray(places))
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
        values = {name: np.asarray(each, np.float32) for name, each in hypers.items()}
        keys = jax.jit(jax.vmap(jax.random.key), out_shardings=where)
        return replace(
            self,
            keys=keys(np.asarray(seeds, np.uint32)),
            hypers=meshes.put(values, where),
            variant=meshes.put(np.asarray(variant, np.int32), where),
        )

    def epoch(self, steps: int | None = None) -> Callable[..., tuple[Tree, jax.Array]]:
        """A jitted `(state, own, active, frozen, data) -> (state, losses [T, steps])`.

        Call it with `arguments(state)`; the state is donated. Of several trials, one that is not
        active keeps its state, its losses are zeros, and a CPU spends no time on it.

        Args:
          steps: the first ones of the epoch alone, to time them.
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

        where = table_sharding.shardings(self.shapes()), meshes.replicated(self.mesh)
        lifted = trial_axis.over_trials(one, 3, self.mesh)
        return jax.jit(lifted, donate_argnums=0, out_shardings=where)

    def redraw(self) -> Callable[..., Tree]:
        """A jitted `(state, own, frozen) -> redrawn`: what `part` keeps through an epoch."""
        lifted = trial_axis.over_trials(self._redraw, 2, self.mesh)
        return jax.jit(lifted, out_shardings=meshes.trials(self.mesh))

    def part(self, steps: int) -> Callable[..., tuple[Tree, jax.Array]]:
        """A jitted `(state, own, active, redrawn, first, frozen, data) -> (state, losses
        [T, steps])`: so many steps of an epoch from its step `first` on; see `epoch`."""

        def one(state: Tree, own: tuple, active: jax.Array, redrawn: Tree, first, *shared: Tree):
            def train(carry: tuple[Tree, jax.Array]) -> tuple[Tree, jax.Array]:
                return self._run(carry[0], redrawn, own, first, steps, *shared)

            carry = (state, jnp.zeros(steps))
            return train(carry) if len(self.keys) == 1 else trial_axis.run_if(active, train, carry)

        where = table_sharding.shardings(self.shapes()), meshes.replicated(self.mesh)
        lifted = trial_axis.over_trials(one, 4, self.mesh)
        return jax.jit(lifted, donate_argnums=0, out_shardings=where)

    def _redraw(self, state: Tree, own: tuple, frozen: Tree) -> Tree:
        """What one trial's recommender draws or rebuilds for an epoch."""
        key, _, variant = own
        model = self.merge(self._whole(state), self._frozen(frozen, variant))
        of_epoch = jax.random.split(jax.random.fold_in(key, state["epoch"]), 3)[1]
        return model.epoch(of_epoch) if hasattr(model, "epoch") else {}

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
        """One trial's state after so many steps of an epoch from its step `first` on, and their
        losses; with the last step the epoch is counted."""
        key, hyper, variant = own
        state, frozen = self._whole(state), self._frozen(frozen, variant)
        key = jax.random.fold_in(key, state["epoch"])
        of_batches, _, of_loss = jax.random.split(key, 3)
        factor, period = self.settings.lr_decay
        rate = hyper["lr"] * factor ** (state["epoch"] / period)
        options = {name: value for name, value in hyper.items() if name != "lr"}

        def step(carry: tuple[Tree, Tree], t: jax.Array) -> tuple[tuple[Tree, Tree], jax.Array]:
            params, opt = carry
            batch = sampling.batch(
                of_batches, t, data, self.settings.batch_size, self.settings.sampler
            )
            batch = jax.tree.map(self.layout.constrain_batch, batch) | {"step": t}

            def objective(params: Tree) -> jax.Array:
                model = self.merge(state | {"params": params}, frozen)
                return model.loss(batch, redrawn, **options, key=jax.random.fold_in(of_loss, t))

            loss, gradients = jax.value_and_grad(objective)(params)
            updates, opt = self.optimizer.update(gradients, opt, params)
            params = jax.tree.map(lambda p, u: p - rate.astype(p.dtype) * u, params, updates)
            return (params, opt), loss

        carry = (state["params"], state["opt"])
        count = first + jnp.arange(steps, dtype=jnp.uint32)
        (params, opt), losses = jax.lax.scan(step, carry, count)
        epoch = state["epoch"] + (first + steps == self.steps)
        after = {"params": params, "opt": opt, "epoch": epoch}
        return self.layout.pad(state | after), losses

    def parts(self, done: int = 0) -> list[range]:
        """The steps of the parts of an epoch of which so many are done; one part unless
        `part_steps` says otherwise."""
        most = self.settings.part_steps or self.steps
        return [range(n, min(n + most, self.steps)) for n in range(done, self.steps, most)]

    @property
    def program(self) -> Any:
        """`epoch`, compiled once for each T; nothing is allocated for it."""
        return self._compiled("epoch", self.epoch, lambda: self.arguments(self.shapes()))

    @property
    def redraw_program(self) -> Any:
        """`redraw`, compiled once for each T."""
        return self._compiled("redraw", self.redraw, self._of_redraw)

    def part_program(self, steps: int) -> Any:
        """`part`, compiled once for each T and number of steps."""

        def arguments() -> tuple:
            state, own, active, *shared = self.arguments(self.shapes())
            return (state, own, active, self.redrawn_shapes(), self.place(0), *shared)

        return self._compiled(f"part of {steps}", lambda: self.part(steps), arguments)

    def place(self, step: int) -> jax.Array:
        """A step's number, on the devices."""
        return meshes.put(np.uint32(step), meshes.replicated(self.mesh))

    def redrawn_shapes(self) -> Tree:
        """What `redraw` gives, as shapes and where they lie."""
        with meshes.use(self.mesh):
            shapes = jax.eval_shape(self.redraw(), *self._of_redraw())
        lie = functools.partial(jax.ShapeDtypeStruct, sharding=meshes.trials(self.mesh))
        return jax.tree.map(lambda x: lie(x.shape, x.dtype), shapes)

    def _of_redraw(self) -> tuple:
        state, own, _, frozen, _ = self.arguments(self.shapes())
        return state, own, frozen

    def _compiled(self, name: str, make: Callable[[], Any], arguments: Callable[[], tuple]) -> Any:
        key = (name, len(self.keys))
        if key not in self.programs:
            with meshes.use(self.mesh):
                self.programs[key] = make().lower(*arguments()).compile()
        return self.programs[key]

    def shapes(self) -> Tree:
        """The state that `init` gives, as shapes and where they lie."""
        scalar = jax.ShapeDtypeStruct((), jnp.int32)
        return self.layout.padded_shapes(self.like[0] | {"epoch": scalar}, len(self.keys))

    def _whole(self, state: Tree) -> Tree:
        """One trial's state, or a part of it, as it is in programs."""
        parts = {name: self.like[0][name] for name in state if name != "epoch"}
        return state | self.layout.unpad({name: state[name] for name in parts}, parts)

    def _frozen(self, frozen: Tree, variant: jax.Array) -> Tree:
        """What is frozen for one trial, as it is in programs."""
        return self.layout.unpad(trial_axis.choose(frozen, self.varied, variant), self.like[1])

    def arguments(self, state: Tree, active: Sequence[bool] | None = None) -> tuple:
        """Of `epoch`; all T trials are active unless said otherwise."""
        own = (self.keys, self.hypers, self.variant)
        return state, own, self.flags(active), self.frozen, self.data

    def flags(self, active: Sequence[bool] | None = None) -> jax.Array:
        """Which trials are active, [T], on the devices; all if not said otherwise."""
        active = np.ones(len(self.keys), bool) if active is None else np.asarray(active)
        return meshes.put(active, meshes.trials(self.mesh))

    def evaluate(self, cutoffs: Sequence[int], *, map_capped: bool) -> Callable[..., dict]:
        """A jitted `(state, variant, active, frozen, chunks) -> ranking.rank's results`, each with
        a trial axis. Of several trials, one that is not active has zeros, and costs a CPU nothing.
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
            nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(rank))
            return trial_axis.run_if(active, rank, nothing)

        lifted = trial_axis.over_trials(one, 3, self.mesh)
        return jax.jit(lifted, out_shardings=meshes.replicated(self.mesh))


def pick(tree: Tree, trial: int) -> Tree:
    """One trial's part of a tree with a trial axis, on the host."""
    return jax.tree.map(lambda x: np.asarray(x[trial]), tree)
