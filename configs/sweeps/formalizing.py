r"""Sweep: accuracy, novelty, diversity and popularity bias of six recommenders.

It follows arXiv 2309.05273. VBPR, MMGCN, GRCN, LATTICE, BM3 and FREEDOM on ResNet50 and SBERT
features, grids of ten points in Elliot's loop, at cutoffs 10 and 20. Every run's results hold EFD,
Gini, APLT and coverage beside the accuracy; Gini is the inequality, one minus what Elliot prints.

Expected, Recall@20 / nDCG@20 / coverage@20: Office VBPR .1025 .0533 .975, MMGCN .0798 .0405 .046,
GRCN .0667 .0339 .998, LATTICE .1029 .0566 .959, BM3 .1081 .0583 .916, FREEDOM .0884 .0469 .906;
Toys VBPR .1006 .0545 .928, MMGCN .0426 .0200 .525, GRCN .0831 .0436 .977, LATTICE .1165 .0617 .866,
BM3 .0901 .0478 .735, FREEDOM .1249 .0660 .784; more in the paper.

    python scripts/sweep.py --config=configs/sweeps/formalizing.py --workdir=SWEEP \
      --config.dataset=DIR --config.features=visual=resnet50,textual=mpnet

`small` runs all six for a few epochs on MovieLens-100k or a world.
"""

from configs import common

RATES = (1e-4, 5e-4, 1e-3, 5e-3, 1e-2)


def get_config(arg: str | None = None):
    loop = dict(cutoffs=(10, 20))
    grid = dict(lr=RATES, model=dict(l_w=(1e-5, 1e-2)))
    grids = {
        "vbpr": grid,
        "mmgcn": grid | dict(lr=(1e-5, 3e-5, 1e-4, 1e-3, 1e-2)),
        "grcn": grid | dict(lr=(1e-4, 1e-3, 1e-2, 0.1, 1.0)),
        "lattice": grid,
        "bm3": dict(lr=RATES, model=dict(l_w=(0.1, 0.01))),
        "freedom": grid,
    }
    changes = {"bm3": dict(model=dict(dropout=0.5, layers=1))}
    paper = common.sweep(
        {
            name: common.study(
                f"{name}:elliot", tune, features="*", **loop, **changes.get(name, {})
            )
            for name, tune in grids.items()
        },
        seeds=(123, 124, 125),
    )
    loop |= dict(epochs=30, eval_every=2, patience=3)
    frozen = dict(model=dict(trainable_features=False))
    small = common.sweep(
        {
            name: common.study(
                name,
                dict(lr=(1e-2,)),
                features="*",
                **loop,
                **(frozen if name in ("bm3", "freedom", "lattice") else {}),
            )
            for name in grids
        },
        seeds=(0,),
    )
    return common.preset(arg, default=paper, small=small)
