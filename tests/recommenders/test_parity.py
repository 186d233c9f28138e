"""Our models against the numbers that MMRec itself computed on a tiny data set; see `dumps`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from flax import nnx
from recommenders import dumps
from recommenders.dumps import Case, Dump, close

from mmjax import edges, graph
from mmjax.recommenders import core

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
            "weight": "item_linear.weight",
            "bias": "item_linear.bias",
        },
        hypers={"l_w": "reg_weight"},
        exact=True,
        modalities="tv",
    ),
    "freedom": Dump(
        "freedom",
        dict(weights={"v": 0.1}, drop=0.0),
        params=TABLES | CONTENTS,
        hypers={"l_w": "reg_weight"},
        meta={"layers": "n_ui_layers", "item_layers": "n_mm_layers", "top_k": "knn_k"},
        noise=("contents.0.bias", "contents.1.bias"),
    ),
}


@pytest.mark.parametrize("name", DUMPS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
def test_loss_gradients_scores_and_adam_steps(parity, name, dtype):
    with jax.enable_x64(dtype == np.float64):
        dumps.check(Case(parity, name, DUMPS[name], dtype))


def test_lightgcn_on_the_dumped_graph_in_float64(parity):
    with jax.enable_x64(True):
        case = Case(parity, "lightgcn", DUMPS["lightgcn"], np.float64)
        dense = next(case.ref[k] for k in case.ref.files if k.startswith("graph/"))
        n_users = case.meta["n_users"]
        block = sp.csr_matrix(dense.astype(np.float64)[:n_users, n_users:])
        theirs = graph.from_scipy(block, np.float64)
        case.rest = nnx.State({"graph": core.Frozen(theirs)})
        loss, gradients = jax.value_and_grad(case.loss)(case.params)
        close(loss, case.ref["loss64"], 1e-9)
        close(case.scores(case.params), case.ref["scores64"], 1e-9)
        dumps.check_gradients(case, gradients, "g64", 1e-9)


def test_freedom_on_the_pruned_graph(parity):
    """The step under the edges that MMRec drew: dropout .8."""
    with jax.enable_x64(True):
        case = Case(parity, "freedom", DUMPS["freedom"], np.float64)
        whole = case.model(case.params).whole.get_value()
        users, items = case.ref["prune/edges"]
        keys = whole.forward.rows * np.int64(case.meta["n_items"]) + whole.forward.columns
        chosen = np.searchsorted(keys, np.sort(users * np.int64(case.meta["n_items"]) + items))
        model = case.model(case.params)
        pruned = model._normalised(edges.keep(whole, jnp.asarray(chosen)))
        loss, gradients = jax.value_and_grad(lambda p: case.loss(p, pruned))(case.params)
        close(loss, case.ref["prune/loss64"], 1e-6)
        dumps.check_gradients(case, gradients, "prune/g64", 1e-6)
