r"""Sweep: five extractor pairs by twelve recommenders.

It follows Ducho meets Elliot (arXiv 2409.15857). Grids of ten points, width 64, batch 1024, 200
epochs, valid every tenth, tuned with seed 123 and repeated with 124 and 125, Recall@20 on valid;
BPRMF without biases. Published grids: five rates by two weights; GRCN's rates reach 1; SimGCL's l_w
is fixed and its contrast's weight varied. ItemKNN's and SGL's grids were not published: here ten
numbers of neighbours, and the rates by two weights.

Expected, Amazon Baby, Recall and nDCG at 20: ItemKNN .0246 and .0119, VBPR with ResNet50 and SBERT
.0621 and .0299, LATTICE with MMFashion and SBERT .0838 and .0413, FREEDOM with CLIP .0895, .0436.

    python scripts/sweep.py --config=configs/sweeps/ducho_elliot.py --workdir=SWEEP \
      --config.dataset=DIR --config.stores=resnet50=STORE,mpnet=STORE,clip_image=STORE,...
    python scripts/sweep.py --config=configs/sweeps/ducho_elliot.py:batch_size ...

`batch_size` varies the extraction's batch: the same extractor's stores clip_image_1, clip_text_1,
..._8, ..._32, ..._128, by VBPR, BM3 and FREEDOM. `small` is for a dataset with the stores `visual`
and `textual`: six recommenders, two points each (ItemKNN three).
"""

from configs import common

PAIRS = {
    "r50_sbert": "visual=resnet50,textual=mpnet",
    "clip": "visual=clip_image,textual=clip_text",
    "mmfashion_sbert": "visual=mmfashion,textual=mpnet",
    "align": "visual=align_image,textual=align_text",
    "altclip": "visual=altclip_image,textual=altclip_text",
}
BATCHES = (1, 8, 32, 128)
RATES, WEIGHTS = (1e-4, 5e-4, 1e-3, 5e-3, 1e-2), (1e-5, 1e-2)
CLASSICAL = ("ngcf", "lightgcn", "sgl")


def get_config(arg: str | None = None):
    grid = dict(lr=RATES, model=dict(l_w=WEIGHTS))
    neighbours = (10, 20, 50, 100, 150, 200, 300, 500, 700, 1000)
    multimodal = {
        "vbpr": common.study("vbpr:elliot", grid),
        "ngcfm": common.study("ngcfm:elliot", grid),
        "grcn": common.study(
            "grcn:elliot", dict(lr=(1e-4, 1e-3, 1e-2, 0.1, 1.0), model=dict(l_w=WEIGHTS))
        ),
        "lattice": common.study("lattice:elliot", grid),
        "bm3": common.study("bm3:elliot", dict(lr=RATES, model=dict(l_w=(0.1, 0.01)))),
        "freedom": common.study("freedom:elliot", grid),
    }
    classical = {
        "itemknn": common.study(
            "itemknn:elliot", dict(model=dict(neighbours=neighbours)), compare={}
        ),
        "bprmf": common.study("bprmf:elliot", grid, compare={}, model=dict(bias=False)),
        **{name: common.study(f"{name}:elliot", grid, compare={}) for name in CLASSICAL},
        "simgcl": common.study(
            "simgcl:elliot", dict(lr=RATES, model=dict(cl_weight=(0.5, 2.0))), compare={}
        ),
    }
    paper = common.sweep(
        classical | multimodal, compare={"features": common.levels(PAIRS)}, seeds=(123, 124, 125)
    )
    batches = {
        f"batch {size}": f"visual=clip_image_{size},textual=clip_text_{size}" for size in BATCHES
    }
    batch_size = common.sweep(
        {name: multimodal[name] for name in ("vbpr", "bm3", "freedom")},
        compare={"extraction": common.levels(batches)},
        seeds=(123, 124, 125),
    )
    loop = dict(epochs=60, eval_every=2, patience=3)
    few = dict(lr=(2e-3, 1e-2))
    small = common.sweep(
        {
            "itemknn": common.study(
                "itemknn", dict(model=dict(neighbours=(20, 100, 500))), compare={}
            ),
            "bprmf": common.study("bprmf", few, compare={}, **loop),
            "lightgcn": common.study("lightgcn", few, compare={}, **loop),
            "vbpr": common.study("vbpr", few, **loop),
            "freedom": common.study("freedom", few, model=dict(trainable_features=False), **loop),
            "bm3": common.study("bm3", few, model=dict(trainable_features=False), **loop),
        },
        compare={
            "features": common.levels({"visual": "visual=visual", "textual": "textual=textual"})
        },
        seeds=(0, 1),
    )
    return common.preset(arg, default=paper, batch_size=batch_size, small=small)
