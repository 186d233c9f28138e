r"""Sweep: extractors and large vision-language models, tuned alike.

It follows arXiv 2508.04571 and its extension. VBPR, BM3, FREEDOM and LATTICE on each extractor,
30-point grids; beside them the classical recommenders, by TPE with 30 points; and the models'
descriptions as side content of a neighbourhood model. Elliot's loop, relevance from 4 stars on,
Recall@20 on valid, LATTICE validated once, at the end. The paper's batch is 1024 for Baby, 8192 for
Pets and Clothing; its seed 123.

Expected: no table of the paper could be had. Its claims: standard extractors help, an LVLM's one
embedding helps more, and its descriptions help a neighbourhood model.

    python scripts/sweep.py --config=configs/sweeps/extractors.py --workdir=SWEEP \
      --config.dataset=DIR --config.stores=resnet50=STORE,mpnet=STORE,clip_image=STORE,...

Levels whose stores are not there are left out. `small` compares one modality with two, of a dataset
with the stores `visual` and `textual` (MovieLens-100k or a world).
"""

from configs import common

EXTRACTORS = {
    "r50": "visual=resnet50",
    "sbert": "textual=mpnet",
    "r50_sbert": "visual=resnet50,textual=mpnet",
    "vit": "visual=vit",
    "clip": "visual=clip_image,textual=clip_text",
    "qwen2vl": "visual=qwen2vl",
    "phi35vl": "visual=phi35vl",
    "qwen25vl": "visual=qwen25vl",
    "qwen3vl": "visual=qwen3vl",
}
DESCRIBED = {
    f"{name}_attributes": f"attributes={name}_attributes" for name in ("qwen2vl", "phi35vl")
}


def get_config(arg: str | None = None):
    loop = dict(threshold=4.0)
    grid = dict(lr=(1e-4, 5e-4, 1e-3, 5e-3, 1e-2), model=dict(dim=(64, 128, 256), l_w=(0.01, 0.1)))
    uncompared = dict(compare={}, search="tpe", **loop)
    near = dict(
        neighbours=common.between(5, 1000, integer=True),
        similarity=("cosine", "jaccard", "dot", "asymmetric", "tversky"),
        alpha=common.between(0, 2),
        beta=common.between(0, 2),
    )
    factorised = dict(
        lr=common.between(1e-5, 1.0, log=True),
        model=dict(dim=(64, 128, 256), l_w=common.between(1e-5, 0.1, log=True)),
    )
    biased = factorised | dict(
        model=factorised["model"] | dict(l_b=common.between(1e-5, 0.1, log=True))
    )
    side = dict(
        weight=common.between(0.0067, 148.4, log=True),
        feature_weighting=("none", "tfidf", "bm25"),
    )
    paper = common.sweep(
        {
            "random": common.study("random", **uncompared | {"protocol": "elliot"}),
            "mostpop": common.study("mostpop", **uncompared | {"protocol": "elliot"}),
            "itemknn": common.study("itemknn:elliot", dict(model=near), **uncompared),
            "attributeitemknn": common.study(
                "attributeitemknn:elliot",
                dict(model=near | side),
                **uncompared | {"compare": {"features": common.levels(DESCRIBED)}},
            ),
            "bprmf": common.study("bprmf:elliot", biased, **uncompared),
            "lightgcn": common.study("lightgcn:elliot", factorised, **uncompared),
            **{
                name: common.study(f"{name}:elliot", grid, **loop, **change)
                for name, change in {
                    "vbpr": {},
                    "bm3": {},
                    "freedom": {},
                    "lattice": {"model": {"top_k": 10}, "eval_every": 200},
                }.items()
            },
        },
        compare={"features": common.levels(EXTRACTORS)},
        seeds=(123, 124, 125),
    )
    loop = dict(epochs=60, eval_every=2, patience=3)
    grid = dict(lr=(5e-3, 1e-2))
    small = common.sweep(
        {
            "mostpop": common.study("mostpop", compare={}),
            "bprmf": common.study("bprmf", grid, compare={}, **loop),
            "vbpr": common.study("vbpr", grid, **loop),
            "lightgcnm": common.study("lightgcnm", grid, **loop),
        },
        compare={
            "features": common.levels(
                {
                    "both": "visual=visual,textual=textual",
                    "visual": "visual=visual",
                    "textual": "textual=textual",
                }
            )
        },
        seeds=(0, 1),
    )
    return common.preset(arg, default=paper, small=small)
