"""BPRMF, LightGCN and VBPR against the numbers that MMRec itself computed on a tiny data set.

Tolerances are the reference's own: largest difference over the largest entry, 1e-5 in float32; in
float64 1e-9 on the dumped graph (which MMRec built in float32) and 1e-6 on our own.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse as sp
from flax import nnx

from mmjax import graph
from mmjax.recommenders import core

MODELS = {
    "bpr": dict(
        name="bprmf",
        options=dict(bias=False, init="xavier_normal"),
        params={"user": "user_embedding.weight", "item": "item_embedding.weight"},
    ),
    "lightgcn": dict(
        name="lightgcn",
        options=dict(eps=1e-7, init="xavier_uniform"),
        params={"user": "embedding_dict.user_emb", "item": "embedding_dict.item_emb"},
    ),
    "vbpr": dict(
        name="vbpr",
        options=dict(normalize=False, content_init="joint", projection_init="xavier_normal"),
        params={
            "user": "u_embedding",
            "item": "i_embedding",
            "weight": "item_linear.weight",
            "bias": "item_linear.bias",
        },
    ),
}
MMREC = dict(ranking_loss="offset", regulariser="norms")


class Case:
    """One dump loaded into our model, in one precision."""

    def __init__(self, folder, dump, dtype):
        spec = MODELS[dump]
        self.ref = np.load(folder / f"{dump}.npz")
        meta = json.loads(str(self.ref["meta"]))
        options = {"dim": meta["params"]["embedding_size"], **MMREC, **spec["options"]}
        if dump == "lightgcn":
            options["layers"] = meta["params"]["n_layers"]
        order = np.lexsort((self.ref["train_i"], self.ref["train_u"]))
        catalog = core.Catalog(
            n_users=meta["n_users"],
            n_items=meta["n_items"],
            train_user=self.ref["train_u"][order],
            train_item=self.ref["train_i"][order],
            train_rating=np.ones(len(order), np.float32),
            features={m: jnp.asarray(self.ref[f"{m}_feat"], dtype) for m in ("t", "v")},
        )
        model = core.find(spec["name"])(catalog, **options, rngs=nnx.Rngs(0))
        self.graphdef, _, self.frozen = nnx.split(model, nnx.Param, ...)
        self.names = spec["params"]
        self.params = {k: jnp.asarray(self.ref[f"p0/{v}"], dtype) for k, v in self.names.items()}
        self.l_w = meta["params"]["reg_weight"]
        self.batch = {k: jnp.asarray(self.ref[v]) for k, v in (("user", "users"),)}
        self.batch |= {k: jnp.asarray(self.ref[k]) for k in ("pos", "neg")}

    def model(self, params):
        return nnx.merge(self.graphdef, nnx.State(params), self.frozen)

    def loss(self, params):
        return self.model(params).loss(self.batch, {}, l_w=self.l_w, key=None)

    def scores(self, params):
        model = self.model(params)
        users = jnp.arange(self.ref["scores"].shape[0])
        return model.scores(model.tables(), {"user": users})


def close(got, want, tolerance):
    want = np.asarray(want)
    difference = np.abs(np.asarray(got) - want).max() / max(np.abs(want).max(), 1e-8)
    assert difference <= tolerance, f"{difference:.2e} > {tolerance:.0e}"


@pytest.mark.parametrize("dump", MODELS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
def test_loss_gradients_scores_and_adam_steps(parity, dump, dtype):
    double = dtype == np.float64
    tolerance = (1e-6 if dump == "lightgcn" else 1e-9) if double else 1e-5
    tag = "64" if double else ""
    with jax.enable_x64(double):
        case = Case(parity, dump, dtype)
        loss, gradients = jax.jit(jax.value_and_grad(case.loss))(case.params)
        assert loss.dtype == dtype
        close(loss, case.ref[f"loss{tag}"], tolerance)
        for name, theirs in case.names.items():
            close(gradients[name], case.ref[f"g64/{theirs}"], tolerance)
        close(jax.jit(case.scores)(case.params), case.ref[f"scores{tag}"], tolerance)

        adam, params, losses = optax.adam(1e-3), case.params, []
        moments = adam.init(params)
        step = jax.jit(jax.value_and_grad(case.loss))
        for _ in range(5):
            value, gradients = step(params)
            losses.append(float(value))
            updates, moments = adam.update(gradients, moments)
            params = optax.apply_updates(params, updates)
        close(losses, case.ref[f"step_losses{tag}"], tolerance)
        close(case.scores(params), case.ref["scores564" if double else "scores5"], tolerance)


def test_lightgcn_on_the_dumped_graph_in_float64(parity):
    with jax.enable_x64(True):
        case = Case(parity, "lightgcn", np.float64)
        dense = next(case.ref[k] for k in case.ref.files if k.startswith("graph/"))
        n_users = case.ref["p0/embedding_dict.user_emb"].shape[0]
        block = sp.csr_matrix(dense.astype(np.float64)[:n_users, n_users:])
        theirs = graph.from_scipy(block, np.float64)
        case.frozen = nnx.State({"graph": core.Frozen(theirs)})
        loss, gradients = jax.value_and_grad(case.loss)(case.params)
        close(loss, case.ref["loss64"], 1e-9)
        close(case.scores(case.params), case.ref["scores64"], 1e-9)
        for name, torch_name in case.names.items():
            close(gradients[name], case.ref[f"g64/{torch_name}"], 1e-9)
