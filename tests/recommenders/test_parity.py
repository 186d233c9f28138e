"""Our models against the numbers that MMRec itself computed on a tiny data set; see `dumps`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from flax import nnx
from support import dumps
from support.dumps import Case, Dump, close

from mmjax.ops import draws, graph, weighted_graph
from mmjax.recommenders import base

MMREC = dict(ranking_loss="offset", regulariser="norms")
TABLES = {"user": "user_embedding.weight", "item": "item_id_embedding.weight"}
CONTENTS = {
    f"contents.{n}.{ours}": f"{modality}_{theirs}"
    for n, modality in enumerate(("image", "text"))
    for ours, theirs in (
        ("features", "embedding.weight"),
        ("weight", "trs.weight"),
        ("bias", "trs.bias"),
    )
}


def layer(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.kernel": f"{theirs}.weight", f"{ours}.bias": f"{theirs}.bias"}


LEARNED = {f"similar.{path}": name for path, name in CONTENTS.items()}
LEARNED |= {"similar.importance": "modal_weight"}
DUMPS = {
    "bpr": Dump(
        "bprmf",
        dict(bias=False, init="xavier_normal", **MMREC),
        params={"user": "user_embedding.weight", "item": "item_embedding.weight"},
        hypers={"l_w": "reg_weight"},
        exact=True,
    ),
    "lightgcn": Dump(
        "lightgcn",
        dict(eps=1e-7, init="xavier_uniform", **MMREC),
        params={"user": "embedding_dict.user_emb", "item": "embedding_dict.item_emb"},
        hypers={"l_w": "reg_weight"},
        meta={"layers": "n_layers"},
    ),
    "vbpr": Dump(
        "vbpr",
        dict(normalize=False, content_init="joint", projection_init="xavier_normal", **MMREC),
        params={
            "user": "u_embedding",
            "item": "i_embedding",
            "content.weight": "item_linear.weight",
            "content.bias": "item_linear.bias",
        },
        hypers={"l_w": "reg_weight"},
        exact=True,
        modalities="tv",
    ),
    "freedom": Dump(
        "freedom",
        dict(weights={"visual": 0.1}, drop=0.0),
        params=TABLES | CONTENTS,
        hypers={"l_w": "reg_weight"},
        meta={"layers": "n_ui_layers", "item_layers": "n_mm_layers", "top_k": "knn_k"},
        noise=("contents.0.bias", "contents.1.bias"),
    ),
    "lattice": Dump(
        "lattice",
        dict(layers=2),
        params=TABLES | LEARNED,
        hypers={"l_w": "reg_weight"},
        meta={"item_layers": "n_layers", "top_k": "knn_k", "skip": "lambda_coeff"},
        once=tuple(LEARNED),
    ),
    "bm3": Dump(
        "bm3",
        {},
        params=TABLES | CONTENTS | layer("predictor", "predictor"),
        hypers={"l_w": "reg_weight", "cl_weight": "cl_weight", "dropout": "dropout"},
        meta={"layers": "n_layers"},
    ),
    "mgcn": Dump(
        "mgcn",
        {},
        params=TABLES
        | CONTENTS
        | layer("attention.hidden", "query_common.0")
        | {"attention.query.kernel": "query_common.2.weight"}
        | layer("gates.0", "gate_v.0")
        | layer("gates.1", "gate_t.0")
        | layer("prefers.0", "gate_image_prefer.0")
        | layer("prefers.1", "gate_text_prefer.0"),
        hypers={"l_w": "reg_weight", "cl_weight": "cl_loss"},
        meta={"layers": "n_ui_layers", "item_layers": "n_layers", "top_k": "knn_k"},
        small=("attention.hidden.bias",),
    ),
    "slmrec": Dump(
        "slmrec",
        dict(sigmoid=True),
        params={
            "user": "embedding_user.weight",
            "item": "embedding_item.weight",
            **{f"contents.{n}.weight": f"{m}_dense.weight" for n, m in enumerate("vt")},
            **{f"contents.{n}.bias": f"{m}_dense.bias" for n, m in enumerate("vt")},
            **layer("fuse_users", "embedding_user_after_GCN"),
            **layer("fuse_items", "embedding_item_after_GCN"),
            **layer("steps.0", "g_i_iv"),
            **layer("steps.1", "g_iv_iva"),
            **layer("steps.2", "g_iva_ivat"),
            "heads.0.kernel": "g_v_iv.weight",
            "heads.1.kernel": "g_t_ivat.weight",
        },
        hypers={
            "ssl_weight": "ssl_alpha",
            "temperature": "temp",
            "ssl_temperature": "ssl_temp",
        },
        meta={"layers": "layer_num"},
    ),
    "grcn": Dump(
        "grcn",
        dict(routings=0, content_penalty="first_table"),
        params={
            "node": "id_gcn.id_embedding",
            "confidence": "model_specific_conf",
            **{f"preferences.{n}": f"{m}_gcn.preference" for n, m in enumerate("vt")},
            **{f"contents.{n}.weight": f"{m}_gcn.MLP.weight" for n, m in enumerate("vt")},
            **{f"contents.{n}.bias": f"{m}_gcn.MLP.bias" for n, m in enumerate("vt")},
        },
        hypers={"l_w": "reg_weight"},
        meta={"content_dim": "latent_embedding"},
        exact=True,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DUMPS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
def test_loss_gradients_scores_and_adam_steps(parity, name, dtype):
    with jax.enable_x64(dtype == np.float64):
        dumps.check(Case(parity, name, DUMPS[name], dtype))


@pytest.mark.slow
def test_lightgcn_on_the_dumped_graph_in_float64(parity):
    with jax.enable_x64(True):
        case = Case(parity, "lightgcn", DUMPS["lightgcn"], np.float64)
        dense = next(case.ref[k] for k in case.ref.files if k.startswith("graph/"))
        n_users = case.meta["n_users"]
        block = sp.csr_matrix(dense.astype(np.float64)[:n_users, n_users:])
        theirs = graph.from_scipy(block, np.float64)
        case.rest = nnx.State({"graph": base.Frozen(theirs)})
        loss, gradients = jax.value_and_grad(case.loss)(case.params)
        close(loss, case.ref["loss64"], 1e-9)
        close(case.scores(case.params), case.ref["scores64"], 1e-9)
        dumps.check_gradients(case, gradients, "g64", 1e-9)


@pytest.mark.slow
def test_freedom_on_the_pruned_graph(parity):
    """The step under the edges that MMRec drew: dropout .8."""
    with jax.enable_x64(True):
        case = Case(parity, "freedom", DUMPS["freedom"], np.float64)
        whole = case.model(case.params).whole.get_value()
        users, items = case.ref["prune/edges"]
        keys = whole.forward.rows * np.int64(case.meta["n_items"]) + whole.forward.columns
        chosen = np.searchsorted(keys, np.sort(users * np.int64(case.meta["n_items"]) + items))
        model = case.model(case.params)
        pruned = model._normalised(weighted_graph.keep(whole, jnp.asarray(chosen)))
        loss, gradients = jax.value_and_grad(lambda p: case.loss(p, pruned))(case.params)
        close(loss, case.ref["prune/loss64"], 1e-6)
        dumps.check_gradients(case, gradients, "prune/g64", 1e-6)


@pytest.mark.slow
def test_lattice_after_the_first_step(parity):
    """The item graph is a constant: the same loss, and zeros where torch has no gradient at all."""
    with jax.enable_x64(True):
        case = Case(parity, "lattice", DUMPS["lattice"], np.float64)
        kept = jax.jit(case.epoch)(case.params)
        later = jax.jit(jax.value_and_grad(case.loss))
        loss, gradients = later(case.params, kept, step=jnp.array(1))
        close(loss, case.ref["nobuild/loss64"], 1e-6)
        none = {ours for ours, theirs in LEARNED.items() if theirs in case.ref["nobuild/no_grad"]}
        assert none == set(LEARNED)
        assert all(not leaf.any() for leaf in jax.tree.leaves(gradients["similar"]))
        rest = {name: gradients[name] for name in ("user", "item")}
        dumps.check_gradients(case, rest, "nobuild/g64", 1e-6)


@pytest.mark.slow
def test_bm3_under_the_dumped_dropout(parity, monkeypatch):
    """Targets are dropped in this order: users, items, then each modality; rows of the batch."""
    with jax.enable_x64(True):
        case = Case(parity, "bm3", DUMPS["bm3"], np.float64)
        rows = {"u": case.batch["user"]} | dict.fromkeys("ivt", case.batch["pos"])
        masks = iter([case.ref[f"drop/mask_{m}"][row] for m, row in rows.items()])
        left = 1 - float(case.ref["drop/p"])
        monkeypatch.setattr(draws, "dropout", lambda key, x, rate: x * next(masks) / left)
        loss, gradients = jax.jit(jax.value_and_grad(case.loss))(case.params)
        close(loss, case.ref["drop/loss64"], 1e-6)
        dumps.check_gradients(case, gradients, "drop/g64", 1e-6)
        assert next(masks, None) is None
