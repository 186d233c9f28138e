"""The parity harness: what the authors' code computed on a tiny data set, loaded into our models.

Tolerances are the reference's own: largest difference over the largest entry, 1e-5 in float32; in
float64 1e-9 where our model needs no graph of its own, else 1e-6, since MMRec built its graphs in
float32.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from mmjax.recommenders import base, registry

NAMES = {"v": "visual", "t": "textual"}
Read = Callable[[str], jax.Array]  # an array of a dump by torch's name
Part = str | Callable[[Read], jax.Array]  # torch's name, or how ours is made of theirs


@dataclass(frozen=True)
class Dump:
    """How a dump's names are ours. `params`: our path, dotted, to torch's name; a path that ends in
    `kernel` is torch's weight transposed."""

    name: str
    options: dict[str, Any]
    params: dict[str, Part]
    hypers: dict[str, str]  # our keyword of `loss` -> MMRec's name
    given: dict[str, Any] = field(default_factory=dict)  # hyper-parameters that the file lacks
    drawn: dict[str, Part] = field(default_factory=dict)  # what is not trained, as `params`
    alias: dict[str, str] = field(default_factory=dict)  # torch's name -> the gradient's
    epoch: Callable[["Case"], Any] | None = None  # what the file says was drawn for the epoch
    draws: Callable[["Case", Any], None] | None = (
        None  # patches in what it says was drawn in a step
    )
    trained_tables: bool = False  # they rank by tables of the epoch's graph
    random: bool = False  # its loss depends on draws that the file does not have
    unread: tuple[str, ...] = ()  # what they penalise as `l_w` does and nothing else reads
    # Our option -> MMRec's name, or how it is made of MMRec's options.
    meta: dict[str, str | Callable[[dict], Any]] = field(default_factory=dict)
    exact: bool = False  # builds no graph
    modalities: str = "vt"  # in this order
    noise: tuple[str, ...] = ()  # gradients that are zero in exact arithmetic
    small: tuple[str, ...] = ()  # whose float32 is compared at 1e-4, as the reference's README says
    optimizer: str = "adam"
    once: tuple[str, ...] = ()  # only moved by the first of the Adam steps: torch 2 skips them then


class Case:
    """One dump loaded into our model, in one precision."""

    def __init__(self, folder, name: str, dump: Dump, dtype, **options):
        self.ref, self.dump, self.dtype = np.load(folder / f"{name}.npz"), dump, dtype
        users, items = self.ref["scores64"].shape
        self.meta = {"n_users": users, "n_items": items, "params": {"embedding_size": 64}}
        self.meta |= json.loads(str(self.ref["meta"])) if "meta" in self.ref else {}
        given = self.meta["params"] | dump.given
        said = {k: given[v] if isinstance(v, str) else v(given) for k, v in dump.meta.items()}
        options = dump.options | said | options
        order = np.lexsort((self.ref["train_i"], self.ref["train_u"]))
        catalog = base.Catalog(
            n_users=self.meta["n_users"],
            n_items=self.meta["n_items"],
            train_user=self.ref["train_u"][order],
            train_item=self.ref["train_i"][order],
            train_rating=np.ones(len(order), np.float32),
            features={NAMES[m]: jnp.asarray(self.ref[f"{m}_feat"], dtype) for m in dump.modalities},
        )
        recommender = registry.find(dump.name)
        model = recommender(catalog, dim=given["embedding_size"], **options, rngs=nnx.Rngs(0))
        self.graphdef, params, drawn, self.rest = nnx.split(model, nnx.Param, base.Drawn, ...)
        self.start = _flat(nnx.to_pure_dict(params))
        self.shapes = {path: np.shape(leaf) for path, leaf in self.start.items()}
        loaded = {path: self.theirs("p0", path) for path in dump.params}
        assert self.shapes == {path: np.shape(value) for path, value in loaded.items()}
        self.params = _nested(loaded)
        if dump.unread:
            self.params["unread"] = {
                name: jnp.asarray(self.ref[f"p0/{name}"]) for name in dump.unread
            }
        drawn = nnx.to_pure_dict(drawn)
        self.drawn = _nested({k: self.made(part, "h0") for k, part in dump.drawn.items()}) or drawn
        self.hypers = {k: given[v] for k, v in dump.hypers.items()}
        names = {"user": "users", "pos": "pos", "neg": "neg"}
        self.batch = {k: jnp.asarray(self.ref[v]) for k, v in names.items() if v in self.ref}
        self.batch["step"] = jnp.array(0)

    def theirs(self, prefix: str, path: str) -> jax.Array:
        if path.startswith("unread."):
            return jnp.asarray(self.ref[f"{prefix}/{path.removeprefix('unread.')}"])
        part = self.dump.params[path]
        value = self.made(part, prefix)
        value = value.T if path.endswith("kernel") and isinstance(part, str) else value
        return value.reshape(self.shapes[path])  # weights of modalities have a third axis there

    def made(self, part: Part, prefix: str) -> jax.Array:
        def read(name: str) -> jax.Array:
            name = (
                f"{prefix}/{name}"
                if f"{prefix}/{name}" in self.ref
                else (f"{prefix}/{self.dump.alias[name]}")
            )
            return jnp.asarray(self.ref[name], self.dtype)

        return read(part) if isinstance(part, str) else part(read)

    def model(self, params):
        params = {name: value for name, value in params.items() if name != "unread"}
        return nnx.merge(self.graphdef, nnx.State(params), nnx.State(self.drawn), self.rest)

    def epoch(self, params, seed: int = 0):
        if self.dump.epoch is not None:
            return self.dump.epoch(self)
        model = self.model(params)
        return model.epoch(jax.random.key(seed)) if hasattr(model, "epoch") else {}

    def loss(self, params, epoch=None, seed: int = 0, **more):
        model = self.model(params)
        epoch = self.epoch(params, seed) if epoch is None else epoch
        batch, hypers = self.batch | more, self.hypers
        total = model.loss(batch, epoch, **hypers, key=jax.random.key(seed))
        unread = jax.tree.leaves(params.get("unread", {}))
        return total + sum(hypers["l_w"] * jnp.square(x).mean() for x in unread)

    def scores(self, params, epoch=None):
        model = self.model(params)
        users = jnp.arange(self.meta["n_users"])
        tables = model._tables(epoch) if self.dump.trained_tables else model.tables()
        return model.scores(tables, {"user": users})


def check(case: Case) -> None:
    """Loss, every gradient, scores, and five Adam steps."""
    double = case.dtype == np.float64
    tolerance = (1e-9 if case.dump.exact else 1e-6) if double else 1e-5
    tag = "64" if double or "loss" not in case.ref else ""
    value_and_grad = jax.jit(jax.value_and_grad(case.loss))
    epoch, scores = None if case.dump.random else case.epoch(case.params), jax.jit(case.scores)
    close(scores(case.params, epoch), case.ref[f"scores{tag}"], tolerance, "scores")
    if case.dump.random:
        return
    loss, gradients = value_and_grad(case.params, epoch, step=jnp.array(0))
    assert loss.dtype == case.dtype
    close(loss, case.ref[f"loss{tag}"], tolerance, "loss")
    check_gradients(case, gradients, "g64", tolerance)
    if "step_losses64" not in case.ref:
        return

    params, losses = case.params, []
    optimizer = getattr(optax, case.dump.optimizer)(1e-3)
    moments = optimizer.init(params)
    for n in range(5):
        value, gradients = value_and_grad(params, epoch, step=jnp.array(n))
        losses.append(float(value))
        updates, moments = optimizer.update(gradients, moments, params)
        if n:
            still = {k: u * 0 if k in case.dump.once else u for k, u in _flat(updates).items()}
            updates = _nested(still)
        params = optax.apply_updates(params, updates)
    steps = f"step_losses{tag}" if f"step_losses{tag}" in case.ref else "step_losses64"
    close(losses, case.ref[steps], tolerance, "losses of Adam's steps")
    after = "scores564" if double else "scores5"
    if after in case.ref:  # Adam divides noise by noise: a float32 run is compared with one alone
        close(scores(params, epoch), case.ref[after], tolerance, "scores after them")


def check_gradients(case: Case, gradients, prefix: str, tolerance: float) -> None:
    for path, gradient in _flat(gradients).items():
        want = case.theirs(prefix, path)
        if path in case.dump.noise:
            assert np.abs(gradient).max() < 1e-7, path
            continue
        loose = path in case.dump.small and case.dtype == np.float32
        close(gradient, want, 1e-4 if loose else tolerance, path)


def close(got, want, tolerance: float, what: str = "") -> None:
    want = np.asarray(want)
    difference = np.abs(np.asarray(got) - want).max() / max(np.abs(want).max(), 1e-8)
    assert difference <= tolerance, f"{what} {difference:.2e} > {tolerance:.0e}"


def _flat(tree, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return out


def _nested(flat: dict[str, Any]) -> dict:
    out: dict = {}
    for path, value in flat.items():
        *folders, name = [int(part) if part.isdigit() else part for part in path.split(".")]
        place = out
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = value
    return out
