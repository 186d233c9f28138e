"""Our models against dumps of the other models, made with the original torch code; see `dumps`.

MMRec's say their hyper-parameters; those of the Elliot forks do not, so they stand here. Where a
fork drew dropout, edges, views or noise, its file does not hold them: scores are compared as all
are, and loss and gradient with what many draws of ours give.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from recommenders.test_parity import CONTENTS, TABLES, layer
from support import dumps
from support.dumps import Case, Dump

from mmjax.ops import draws, graph, weighted_graph
from mmjax.recommenders import selfcf, smore
from mmjax.recommenders.layers import propagation


def side_by_side(*names: str):
    """Tables of several of theirs next to each other."""
    return lambda read: jnp.concatenate([read(name) for name in names], axis=1)


def stacked(*names: str):
    return lambda read: jnp.concatenate([read(name) for name in names])


def image_weight(given: dict) -> dict[str, float]:
    return {"visual": given["mm_image_weight"]}


def square_block(case: Case, name: str) -> graph.Graph:
    """Users by items of a dumped graph over users and items."""
    users = case.meta["n_users"]
    return graph.from_scipy(sp.csr_matrix(case.ref[name][:users, users:]), case.dtype)


def peers(case: Case) -> graph.Graph:
    return graph.from_scipy(sp.csr_matrix(case.ref["graph/peers"]), case.dtype)


def pruned(case: Case) -> graph.Graph:
    model, items = case.model(case.params), np.int64(case.meta["n_items"])
    whole, (user, item) = model.whole.get_value(), case.ref["prune/edges"]
    keys = whole.forward.rows * items + whole.forward.columns
    kept = jnp.asarray(np.searchsorted(keys, np.sort(user * items + item)))
    return propagation.normalised(weighted_graph.keep(whole, kept), model.eps, case.dtype)


def masks(case: Case, *rows: np.ndarray | None) -> list[jax.Array]:
    """Dropout masks in the order in which they were drawn, of all rows or of some."""
    names = sorted(name for name in case.ref.files if name.endswith("_dropout"))
    every = [case.ref[name] for name in names]
    wanted = rows or [None] * len(every)
    return [
        jnp.asarray(mask if row is None else mask[row], case.dtype)
        for mask, row in zip(every, wanted, strict=True)
    ]


def drop_in_turn(patch: pytest.MonkeyPatch, drawn: list[jax.Array]) -> None:
    """`dropout` takes the next of the masks; a trace asks for all of them once."""
    left = iter(())

    def dropout(key: jax.Array, x: jax.Array, rate: float) -> jax.Array:
        nonlocal left
        mask = next(left, None)
        if mask is None:
            left = iter(drawn)
            mask = next(left)
        return x * mask / (1 - rate)

    patch.setattr(draws, "dropout", dropout)


def of_lgmrec(patch: pytest.MonkeyPatch, case: Case) -> None:
    drawn = [case.ref[f"draw/0{n}_gumbel"] for n in range(4)]
    items, users = drawn[0::2], drawn[1::2]
    noise = [jnp.asarray(x, case.dtype) for pair in zip(items, users, strict=True) for x in pair]
    turn = 0

    def gumbel(key: jax.Array, shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
        nonlocal turn
        turn += 1
        assert noise[(turn - 1) % 4].shape == shape
        return noise[(turn - 1) % 4]

    patch.setattr(jax.random, "gumbel", gumbel)
    drop_in_turn(patch, masks(case))


def of_smore(patch: pytest.MonkeyPatch, case: Case) -> None:
    """They drop entries of all nodes' gates, users before items: each row here has its own."""
    drawn, users = jnp.stack(masks(case)) > 0, case.meta["n_users"]
    ends = iter([])

    def kept(self, key: jax.Array, nodes: jax.Array, rate: float) -> jax.Array:
        nonlocal ends
        start = next(ends, None)
        if start is None:
            ends = iter([users, users])  # positives and negatives after the users
            start = 0
        return drawn[:, start + nodes]

    patch.setattr(smore.SMORE, "_kept", kept)


def of_selfcf(patch: pytest.MonkeyPatch, case: Case) -> None:
    users, dropped = case.meta["n_users"], case.ref["graph/dropped"]
    blocks = dropped[:users, users:], dropped[users:, :users]
    pair = tuple(graph.from_scipy(sp.csr_matrix(block), case.dtype) for block in blocks)
    plain = selfcf.SelfCF._graphs
    patch.setattr(
        selfcf.SelfCF,
        "_graphs",
        lambda self, w, key=None, rate=None: plain(self, w) if key is None else pair,
    )
    drop_in_turn(patch, masks(case))


TOWERS = {
    "towers.shares": "weight_u",
    **{f"towers.preferences.{n}": f"{m}_gcn.preference" for n, m in enumerate("vt")},
    **{
        f"towers.hidden.{n}.{part}": f"{m}_gcn.MLP.{part}"
        for n, m in enumerate("vt")
        for part in ("weight", "bias")
    },
    **layer("towers.out.0", "v_gcn.MLP_1"),
    **layer("towers.out.1", "t_gcn.MLP_1"),
}
PREFERENCES = {f"{m}_gcn.preference": f"{m}_preference" for m in "vt"}
IDS = {"user": "Gu.weight", "item": "Gi.weight"}
NGCF_LAYERS = {
    f"layers.{n}.{ours}": f"propagation_network.module_{n}.{theirs}"
    for n in range(3)
    for ours, theirs in (("weight1", "W1"), ("bias1", "b1"), ("weight2", "W2"), ("bias2", "b2"))
}
PROJECTED = {"content.weight": "proj.weight", "content.bias": "proj.bias"}
OF_MODALITIES = {
    f"contents.{n}.{ours}": theirs.format(m=m, n=n)
    for n, m in enumerate("vt")
    for ours, theirs in (
        ("features", "Gim.{m}"),
        ("weight", "projection_m.{m}.weight"),
        ("bias", "projection_m.{m}.bias"),
    )
}
BY_NUMBER = {
    f"contents.{n}.{ours}": theirs.format(n=n)
    for n in range(2)
    for ours, theirs in (
        ("features", "F.{n}.weight"),
        ("weight", "proj.{n}.weight"),
        ("bias", "proj.{n}.bias"),
    )
}


def mmgcn_layers(n: int, modality: str, count: int, message: str, own: str, merge: str) -> dict:
    """Paths of a modality's layers; the names may hold {l}, the layer's number from 0."""
    found = {}
    for number in range(count):
        ours = f"modalities.{n}.layers.{number}"
        found |= layer(f"{ours}.own", own.format(m=modality, l=number, k=number + 1))
        found |= layer(f"{ours}.merge", merge.format(m=modality, l=number, k=number + 1))
        # Their messages are x W, W as it is: no Linear.
        kernel = message.format(m=modality, l=number, k=number + 1)
        found[f"{ours}.message.kernel"] = functools.partial(lambda name, read: read(name), kernel)
    return found


DUMPS = {
    "dragon": Dump(
        "dragon",
        {},
        params=TOWERS,
        hypers={"l_w": "reg_weight"},
        meta={
            "layers": "n_layers",
            "item_layers": "n_mm_layers",
            "top_k": "knn_k",
            "weights": image_weight,
        },
        alias=PREFERENCES,
        epoch=peers,
        trained_tables=True,
    ),
    "dualgnn": Dump(
        "dualgnn",
        dict(sum_in_place=True),
        unread=("weight_i",),
        params=TOWERS,
        hypers={"l_w": "reg_weight"},
        meta={"layers": "n_layers"},
        alias=PREFERENCES,
        epoch=peers,
        trained_tables=True,
    ),
    **{
        name: Dump(
            "layergcn",
            {},
            params={"user": "user_embeddings", "item": "item_embeddings"},
            hypers={"l_w": "reg_weight"},
            meta={"layers": "n_layers", "drop": "dropout"},
            epoch=epoch,
        )
        for name, epoch in (("layergcn", None), ("layergcndrop", pruned))
    },
    "lgmrec": Dump(
        "lgmrec",
        dict(),
        params=TABLES
        | {
            f"contents.{n}.weight": functools.partial(
                lambda names, read: jnp.concatenate([read(name) for name in names], axis=1).T,
                (f"item_{modality}_trs", f"{modality[0]}_hyper".replace("i_", "v_")),
            )
            for n, modality in enumerate(("image", "text"))
        },
        hypers={"l_w": "reg_weight", "cl_weight": "cl_weight"},
        meta={
            "layers": "n_ui_layers",
            "modal_layers": "n_mm_layers",
            "hyper_layers": "n_hyper_layer",
            "hyperedges": "hyper_num",
            "alpha": "alpha",
        },
        draws=of_lgmrec,
    ),
    "mmgcn": Dump(
        "mmgcn",
        dict(layers=3, latent={"visual": 256, "textual": 0}, concat=True, untrained_tables=True),
        params={
            "modalities.0.content.weight": "v_gcn.MLP.weight",
            "modalities.0.content.bias": "v_gcn.MLP.bias",
            **{
                path: name
                for n, m in enumerate("vt")
                for path, name in mmgcn_layers(
                    n,
                    m,
                    3,
                    "{m}_gcn.conv_embed_{k}.weight",
                    "{m}_gcn.linear_layer{k}",
                    "{m}_gcn.g_layer{k}",
                ).items()
            },
        },
        hypers={"l_w": "reg_weight"},
        drawn={
            "user": lambda read: read("id_embedding")[:200],
            "item": lambda read: read("id_embedding")[200:],
            **{f"modalities.{n}.preference": f"{m}_gcn.preference" for n, m in enumerate("vt")},
        },
    ),
    **{
        name: Dump(
            "pgl",
            {},
            params={"user": side_by_side("user_image.weight", "user_text.weight")} | CONTENTS,
            hypers={"cl_weight": "reg_weight", "drop": "dropout"},
            meta={
                "layers": "n_ui_layers",
                "item_layers": "n_mm_layers",
                "top_k": "knn_k",
                "subgraph": "mode",
                "weights": image_weight,
            },
            epoch=lambda case: square_block(case, "graph/sub"),
            draws=lambda patch, case: drop_in_turn(patch, masks(case)),
        )
        for name in ("pgl", "pglglobal")
    },
    "selfcfed_lgn": Dump(
        "selfcf",
        dict(encoder_dropout=True),
        params={
            "user": "online_encoder.embedding_dict.user_emb",
            "item": "online_encoder.embedding_dict.item_emb",
            **layer("predictor", "predictor"),
        },
        hypers={"l_w": "reg_weight", "dropout": "dropout"},
        meta={"layers": "n_layers"},
        draws=of_selfcf,
    ),
    "smore": Dump(
        "smore",
        {},
        params=TABLES
        | CONTENTS
        | {"filters": stacked(*(f"{m}_complex_weight" for m in ("image", "text", "fusion")))}
        | {
            path: name
            for n, m in enumerate("vt")
            for path, name in (
                *layer(f"hidden.{n}", f"query_{m}.0").items(),
                (f"queries.{n}.kernel", f"query_{m}.2.weight"),
            )
        }
        | {
            path: name
            for n, (m, long) in enumerate((("v", "image"), ("t", "text"), ("f", "fusion")))
            for path, name in (
                *layer(f"gates.{n}", f"gate_{m}.0").items(),
                *layer(f"prefers.{n}", f"gate_{long}_prefer.0").items(),
            )
        },
        hypers={
            "l_w": "reg_weight",
            "cl_weight": "cl_loss",
            "temperature": "temperature",
            "drop": "dropout_rate",
        },
        meta={
            "layers": "n_ui_layers",
            "item_layers": "n_layers",
            "top_k": lambda given: (given["image_knn_k"], given["text_knn_k"]),
        },
        draws=of_smore,
    ),
    "elliot_att_bm3": Dump(
        "bm3",
        {},
        given=dict(l_w=0.1, cl_weight=2.0, dropout=0.3),
        random=True,
        params=IDS | BY_NUMBER | layer("predictor", "predictor"),
        hypers={"l_w": "l_w", "cl_weight": "cl_weight", "dropout": "dropout"},
    ),
    "elliot_att_freedom": Dump(
        "freedom",
        dict(weights={"visual": 0.1}, drop=0.8),
        given=dict(l_w=1e-2),
        random=True,
        params=IDS | OF_MODALITIES,
        hypers={"l_w": "l_w"},
    ),
    "elliot_att_lattice": Dump(
        "lattice",
        dict(top_k=20, skip=0.7, norm="both", normalize=True, self_one=True),
        given=dict(l_w=1e-2),
        params=IDS
        | {f"similar.{path}": name for path, name in OF_MODALITIES.items()}
        | {"similar.importance": "importance_weights_m"},
        hypers={"l_w": "l_w"},
    ),
    "elliot_att_lightgcn": Dump(
        "lightgcn",
        dict(layers=3),
        given=dict(l_w=0.1),
        params=IDS,
        hypers={"l_w": "l_w"},
    ),
    **{
        f"elliot_att_lightgcn_m-{how}": Dump(
            "lightgcnm",
            dict(layers=3, aggregation=how),
            given=dict(l_w=0.1),
            params={"user": "Gu.weight"}
            | (
                {
                    "contents.0.features": side_by_side("F.0.weight", "F.1.weight"),
                    "contents.0.weight": "proj.weight",
                    "contents.0.bias": "proj.bias",
                }
                if how == "concat"
                else BY_NUMBER
            ),
            hypers={"l_w": "l_w"},
        )
        for how in ("concat", "mean", "sum")
    },
    "elliot_att_mmgcn-False": Dump(
        "mmgcn",
        dict(layers=3, latent={"visual": 256, "textual": 0}, concat=False, init="xavier_uniform"),
        given=dict(l_w=1e-2),
        params=IDS
        | {
            **{f"modalities.{n}.preference": f"Gum.{m}" for n, m in enumerate("vt")},
            "modalities.0.content.weight": "proj_multimodal.v.weight",
            "modalities.0.content.bias": "proj_multimodal.v.bias",
            **{
                path: name
                for n, m in enumerate("vt")
                for path, name in mmgcn_layers(
                    n,
                    m,
                    3,
                    "propagation_network_multimodal.{m}.module_{l}.weight",
                    "linear_network_multimodal.{m}.linear_{l}",
                    "g_linear_network_multimodal.{m}.g_linear_{l}",
                ).items()
            },
        },
        hypers={"l_w": "l_w"},
    ),
    "elliot_att_ngcf": Dump(
        "ngcf",
        dict(layers=3),
        given=dict(l_w=0.1, message_dropout=0.1),
        random=True,
        params={"user": "Gu", "item": "Gi"} | NGCF_LAYERS,
        hypers={"l_w": "l_w", "message_dropout": "message_dropout"},
    ),
    "elliot_att_ngcf_m": Dump(
        "ngcfm",
        dict(layers=3),
        given=dict(l_w=0.1, message_dropout=0.1),
        random=True,
        params={"user": "Gu", "item": "Gi", "head.user": "Tu.weight"}
        | {f"head.{path}": name for path, name in PROJECTED.items()}
        | NGCF_LAYERS,
        hypers={"l_w": "l_w", "message_dropout": "message_dropout"},
    ),
    **{
        f"elliot_att_sgl-{how}": Dump(
            "sgl",
            dict(layers=3, views=views),
            given=dict(l_w=1e-2),
            params=IDS,
            hypers={"l_w": "l_w"},
            random=True,
        )
        for how, views in (("ed", "edges"), ("nd", "nodes"), ("rw", "layers"))
    },
    "elliot_att_simgcl": Dump(
        "simgcl",
        dict(layers=3),
        given=dict(l_w=1e-4),
        params={"user": "Gu", "item": "Gi"},
        hypers={"l_w": "l_w"},
        random=True,
    ),
    "elliot_att_vbpr": Dump(
        "vbpr",
        dict(content_init="normal"),
        given=dict(l_w=1e-2),
        params={"user": side_by_side("Gu.weight", "Tu.weight"), "item": "Gi.weight"} | PROJECTED,
        hypers={"l_w": "l_w"},
        exact=True,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DUMPS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
def test_loss_gradients_scores_and_adam_steps(authors, name, dtype, monkeypatch):
    with jax.enable_x64(dtype == np.float64):
        case = Case(present(authors, name), name, DUMPS[name], dtype)
        if case.dump.draws is not None:
            case.dump.draws(monkeypatch, case)
        dumps.check(case)


def present(folder: Path, name: str) -> Path:
    if not (folder / f"{name}.npz").exists():
        pytest.skip(f"no {name} among the dumps of {folder}")
    return folder


def test_every_dump_is_read(authors):
    assert {path.stem for path in authors.glob("*.npz")} <= set(DUMPS)


DRAWS = 24


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, dump in DUMPS.items() if dump.random])
def test_a_step_under_their_draws_is_one_of_ours(authors, name):
    """Their loss lies among ours, and their gradient points where ours do."""
    with jax.enable_x64(True):
        case = Case(present(authors, name), name, DUMPS[name], np.float64)
        case.rest = jax.tree.map(jnp.asarray, case.rest)
        step = jax.jit(jax.value_and_grad(lambda params, seed: case.loss(params, None, seed)))
        losses, gradients = zip(*(step(case.params, seed) for seed in range(DRAWS)), strict=True)
        theirs = whole({path: case.theirs("g64", path) for path in case.dump.params})
    away = (case.ref["loss64"] - np.mean(losses)) / np.std(losses, ddof=1)
    assert abs(away) < 4
    ours = np.stack([whole(dumps._flat(gradient)) for gradient in gradients])
    others = (ours.sum(axis=0) - ours) / (DRAWS - 1)
    usual = [cosine(one, mean) for one, mean in zip(ours, others, strict=True)]
    assert cosine(theirs, ours.mean(axis=0)) > min(usual) - 0.05
    np.testing.assert_allclose(
        np.linalg.norm(theirs), np.linalg.norm(ours, axis=1).mean(), rtol=0.2
    )


def whole(gradient: dict[str, jax.Array]) -> np.ndarray:
    return np.concatenate([np.ravel(gradient[path]) for path in sorted(gradient)])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)
