"""Config of LayerGCN: layers weighted by similarity to the id embeddings.

Zhou et al., ICDE 2023.

Expected: none published for these data. MMRec chooses l_w from 1e-2 to 1e-5 and drop from 0, .1
and .2.

    python scripts/train.py --config=configs/layergcn.py --config.dataset=DIR --workdir=RUN
    python scripts/train.py --config=configs/layergcn.py:mmrec ...   # MMRec's options and loop
"""

from configs import common


def get_config(arg: str | None = None):
    model = dict(dim=64, layers=4, drop=0.1, pruning="degree", eps=1e-7, l_w=1e-3)
    return common.preset(
        arg,
        default=common.base("layergcn", **model),
        mmrec=common.mmrec(common.base("layergcn", **(model | dict(pruning="mixed")))),
    )
