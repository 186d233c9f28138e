"""Config of ItemKNN: neighbourhoods of items, nothing is trained.

It is the neighbourhood baseline of arXiv 2508.04571 and 2409.15857.

Expected: Amazon Toys 2014 on the given split, plain cosine over all neighbours, train masked, test
Recall@20 .0648, nDCG@20 .0376; Amazon Baby .0276 and .0140. The shrink of the default, which damps
similarities that rest on few users, reaches .083 and .052 on Toys.

    python scripts/train.py --config=configs/itemknn.py --config.dataset=DIR --workdir=RUN
    python scripts/train.py --config=configs/itemknn.py:elliot ...   # the fork's neighbour rule
"""

from configs import common


def get_config(arg: str | None = None):
    options = dict(
        neighbours=200,
        similarity="cosine",
        shrink=10.0,
        alpha=0.5,
        beta=0.5,
        implicit=True,
        neighbours_of="candidate",
        keep_self=False,
    )
    rule = dict(implicit=False, neighbours_of="history", keep_self=True)
    elliot = options | rule | dict(neighbours=50, shrink=0.0)
    return common.preset(
        arg,
        default=common.base("itemknn", **options),
        elliot=common.elliot(common.base("itemknn", **elliot)),
        mmrec=common.mmrec(common.base("itemknn", **options)),
    )
