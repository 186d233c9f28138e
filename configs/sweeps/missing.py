r"""Sweep: dropping items with missing modalities or imputing their features.

It follows arXiv 2408.11767. `dropped` is a dataset of the items that have all modalities, `dataset`
one of all items, whose stores lack some rows: each method of imputation is a level. Grids of ten
points, width 64, batch 1024, valid after each epoch, patience 5. BPRMF, NGCF, LightGCN and SGL
beside VBPR, NGCF-M and FREEDOM, each on both datasets; BPRMF has no biases here, NGCF the mean of
its layers, and VBPR's users start Xavier-uniform in both spaces, as in this paper's repository.
Numbers of two datasets are not of the same users and items; the paper compares them nevertheless.

Expected: no numbers could be had; the claim is that imputing is no worse than dropping, and that
methods on the item graph do at least as well as zeros, random rows and the mean.

    python scripts/sweep.py --config=configs/sweeps/missing.py --workdir=SWEEP \
      --config.dataset=ALL --config.datasets=dropped=DROPPED \
      --config.stores=visual=STORE,textual=STORE
    python scripts/sweep.py --config=configs/sweeps/missing.py:propagation ...

`propagation` varies neighbours (10 to 100) and layers (1 to 20) of feature propagation. `small`
hides half of the rows of a complete dataset's stores first (the extension's masking; any world
with the stores `visual` and `textual`), then imputes them by four methods.
"""

from configs import common

METHODS = ("zeros", "random", "mean", "neigh_mean", "feat_prop", "pers_page_rank", "heat")
LEARNED = {
    "ae": "visual=visual~ae(other=textual),textual=textual~ae(other=visual)",
    "gae": "visual=visual~gae(other=textual),textual=textual~gae(other=visual)",
}


def imputed(mark: str) -> dict[str, str]:
    return {"features": f"visual=visual~{mark},textual=textual~{mark}"}


def get_config(arg: str | None = None):
    loop = dict(eval_every=1, patience=5)
    grid = dict(lr=(1e-4, 5e-4, 1e-3, 5e-3, 1e-2), model=dict(l_w=(1e-5, 1e-2)))
    dropped = {"dropped": {"dataset": "dropped", "features": "*"}}
    all_and_dropped = {"items": {"all": {}, "dropped": {"dataset": "dropped"}}}
    # Where this paper's repository differs from the other Elliot forks.
    changes = {
        "vbpr": dict(model=dict(content_init="xavier_uniform")),
        "bprmf": dict(model=dict(bias=False)),
        "ngcf": dict(model=dict(combine="mean")),
    }
    content = {
        name: common.study(f"{name}:elliot", grid, **loop, **changes.get(name, {}))
        for name in ("vbpr", "ngcfm", "freedom")
    }
    paper = common.sweep(
        {
            name: common.study(
                f"{name}:elliot", grid, compare=all_and_dropped, **loop, **changes.get(name, {})
            )
            for name in ("bprmf", "ngcf", "lightgcn", "sgl")
        }
        | content,
        compare={
            "items": dropped
            | {method: imputed(method) for method in METHODS}
            | {name: {"features": text} for name, text in LEARNED.items()}
        },
        seeds=(123, 124, 125),
    )
    spread = {
        f"k={top_k} L={layers}": imputed(f"feat_prop(top_k={top_k},layers={layers})")
        for top_k in range(10, 101, 10)
        for layers in (1, 2, 3, 5, 10, 20)
    }
    propagation = common.sweep(content, compare={"items": spread}, seeds=(123,))
    loop = dict(epochs=60, eval_every=2, patience=3)
    few = dict(lr=(5e-3, 1e-2))
    hidden = {
        method: imputed(f"{method}(mask_rate=0.5,mask_seed=42)")
        for method in ("zeros", "mean", "neigh_mean", "feat_prop")
    }
    small = common.sweep(
        {
            "bprmf": common.study("bprmf", few, compare={}, **loop),
            "vbpr": common.study("vbpr", few, **loop),
            "freedom": common.study("freedom", few, model=dict(trainable_features=False), **loop),
        },
        compare={"items": {"complete": {"features": "*"}} | hidden},
        seeds=(0, 1),
    )
    return common.preset(arg, default=paper, propagation=propagation, small=small)
