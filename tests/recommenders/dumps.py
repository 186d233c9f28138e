"""The parity harness: what MMRec itself computed on a tiny data set, loaded into our models.

Tolerances are the reference's own: largest difference over the largest entry, 1e-5 in float32; in
float64 1e-9 where our model needs no graph of its own, else 1e-6, since MMRec built its graphs in
float32.
"""

import json
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from mmjax.recommenders import core


@dataclass(frozen=True)
class Dump:
    """How a dump's names are ours. `params`: our path, dotted, to torch's name; a path that ends in
    `kernel` is torch's weight transposed."""

    name: str
    options: dict[str, Any]
    params: dict[str, str]
    hypers: dict[str, str]  # our keyword of `loss` -> MMRec's name
    meta: dict[str, str] = field(default_factory=dict)  # our option -> MMRec's name
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
        self.meta = json.loads(str(self.ref["meta"]))
        given = self.meta["params"]
        options = dump.options | {k: given[v] for k, v in dump.meta.items()} | options
        order = np.lexsort((self.ref["train_i"], self.ref["train_u"]))
        catalog = core.Catalog(
            n_users=self.meta["n_users"],
            n_items=self.meta["n_items"],
            train_user=self.ref["train_u"][order],
            train_item=self.ref["train_i"][order],
            train_rating=np.ones(len(order), np.float32),
            features={m: jnp.asarray(self.ref[f"{m}_feat"], dtype) for m in dump.modalities},
        )
        recommender = core.find(dump.name)
        model = recommender(catalog, dim=given["embedding_size"], **options, rngs=nnx.Rngs(0))
        self.graphdef, params, self.rest = nnx.split(model, nnx.Param, ...)
        ours = {path: np.shape(leaf) for path, leaf in _flat(nnx.to_pure_dict(params)).items()}
        loaded = {path: self.theirs("p0", path) for path in dump.params}
        assert ours == {path: np.shape(value) for path, value in loaded.items()}
        self.params = _nested(loaded)
        self.hypers = {k: given[v] for k, v in dump.hypers.items()}
        names = {"user": "users", "pos": "pos", "neg": "neg"}
        self.batch = {k: jnp.asarray(self.ref[v]) for k, v in names.items() if v in self.ref}
        self.batch["step"] = jnp.array(0)

    def theirs(self, prefix: str, path: str) -> jax.Array:
        value = jnp.asarray(self.ref[f"{prefix}/{self.dump.params[path]}"], self.dtype)
        return value.T if path.endswith("kernel") else value

    def model(self, params):
        return nnx.merge(self.graphdef, nnx.State(params), self.rest)

    def epoch(self, params):
        model = self.model(params)
        return model.epoch(jax.random.key(0)) if hasattr(model, "epoch") else {}

    def loss(self, params, epoch=None, **more):
        model = self.model(params)
        epoch = self.epoch(params) if epoch is None else epoch
        batch, hypers = self.batch | more, self.hypers
        return model.loss(batch, epoch, **hypers, key=jax.random.key(0))

    def scores(self, params):
        model = self.model(params)
        users = jnp.arange(self.ref["scores"].shape[0])
        return model.scores(model.tables(), {"user": users})


def check(case: Case) -> None:
    """Loss, every gradient, scores, and five Adam steps."""
    double = case.dtype == np.float64
    tolerance = (1e-9 if case.dump.exact else 1e-6) if double else 1e-5
    tag = "64" if double else ""
    value_and_grad = jax.jit(jax.value_and_grad(case.loss))
    epoch, scores = jax.jit(case.epoch)(case.params), jax.jit(case.scores)
    loss, gradients = value_and_grad(case.params, epoch, step=jnp.array(0))
    assert loss.dtype == case.dtype
    close(loss, case.ref[f"loss{tag}"], tolerance)
    check_gradients(case, gradients, "g64", tolerance)
    close(scores(case.params), case.ref[f"scores{tag}"], tolerance)

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
    close(losses, case.ref[f"step_losses{tag}"], tolerance)
    close(scores(params), case.ref["scores564" if double else "scores5"], tolerance)


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
