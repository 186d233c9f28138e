r"""Sweep: an LVLM's embeddings under three prompts.

It extends arXiv 2508.04571. FITB asks for five keywords, DESCR for a description of at most thirty
words, MIS for something that has nothing to do with the item. VBPR and BM3, width 256, five rates
from 1e-4 to 1e-2 by weights {.01, .1}; Elliot's loop, relevance from 4 stars on.

Expected: no table could be had. Where MIS does as well as FITB, the words of the prompt do not
matter, or the embedding does not.

    python scripts/sweep.py --config=configs/sweeps/prompts.py --workdir=SWEEP \
      --config.dataset=DIR --config.stores=fitb=STORE,descr=STORE,mis=STORE

`small` has width 64, six points and early stopping, and the same three stores.
"""

from configs import common

PROMPTS = common.levels({name: f"visual={name}" for name in ("fitb", "descr", "mis")})


def get_config(arg: str | None = None):
    loop = dict(threshold=4.0)
    grid = dict(lr=(1e-4, 5e-4, 1e-3, 5e-3, 1e-2), model=dict(l_w=(0.01, 0.1)))
    wide = dict(model=dict(dim=256))
    paper = common.sweep(
        {
            "bprmf": common.study("bprmf:elliot", grid, compare={}, **loop, **wide),
            "vbpr": common.study("vbpr:elliot", grid, **loop, **wide),
            "bm3": common.study("bm3:elliot", grid, **loop, **wide),
        },
        compare={"prompt": PROMPTS},
        seeds=(123, 124, 125),
    )
    loop = dict(protocol="elliot", threshold=4.0, epochs=100, eval_every=2, patience=5)
    few = dict(lr=(1e-3, 2e-3, 1e-2), model=dict(l_w=(0.01, 0.1)))
    small = common.sweep(
        {
            "bprmf": common.study("bprmf", few, compare={}, **loop),
            "vbpr": common.study("vbpr", few, **loop),
        },
        compare={"prompt": PROMPTS},
        seeds=(0, 1, 2),
    )
    return common.preset(arg, default=paper, small=small)
