"""Config of SLMRec: one LightGCN a modality, aligned by contrast.

Tao et al., TMM 2022, task FAC.

Expected: MMRec, Recall@20 and nDCG@20 .0775 and .0353 on Amazon Baby (MMRec survey). The grids are
lr 1e-4 to .1, ssl_temperature .1, .2, .5, 1 and ssl_weight .01, .05, .1, .5, 1.

    python scripts/train.py --config=configs/slmrec.py --config.dataset=DIR --workdir=RUN
    python scripts/train.py --config=configs/slmrec.py:mmrec ...    # MMRec's loop and its sigmoid
"""

from configs import common


def get_config(arg: str | None = None):
    model = dict(
        dim=64,
        layers=3,
        eps=1e-8,
        sigmoid=False,
        temperature=0.2,
        ssl_temperature=0.5,
        ssl_weight=0.1,
    )
    configs = {
        "default": common.base("slmrec", **model),
        "mmrec": common.mmrec(common.base("slmrec", **(model | dict(sigmoid=True)))),
    }
    for config in configs.values():
        config.features = "auto"
        config.optimizer = "add_decayed_weights(1e-4), scale_by_adam()"
    return common.preset(arg, **configs)
