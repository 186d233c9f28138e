"""Config of BM3: bootstrapped representations without negatives.

Zhou et al., WWW 2023.

Expected: MMRec, Recall@20 and nDCG@20 .0883 and .0383 on Amazon Baby, .0980 and .0438 on Sports
(MMRec survey). Elliot, .0850 and .0426 on Baby with ResNet50 and SBERT features, .0851 and .0428
with CLIP's (Ducho 2.0 demo); with dropout .5 and one layer .0901 and .0478 on Toys, .1081 and .0583
on Office (Formalizing Multimedia Recommendation).

    python scripts/train.py --config=configs/bm3.py --config.dataset=DIR --workdir=RUN
    python scripts/train.py --config=configs/bm3.py:elliot ...   # Elliot's loop
    python scripts/train.py --config=configs/bm3.py:mmrec ...    # MMRec's
"""

from configs import common


def get_config(arg: str | None = None):
    model = dict(
        dim=64,
        layers=2,
        trainable_features=True,
        eps=1e-7,
        l_w=0.1,
        cl_weight=2.0,
        dropout=0.3,
    )
    configs = {
        "default": common.base("bm3", **model),
        "elliot": common.elliot(common.base("bm3", **model)),
        "mmrec": common.mmrec(common.base("bm3", **model)),
    }
    for config in configs.values():
        config.features = "auto"
    return common.preset(arg, **configs)
