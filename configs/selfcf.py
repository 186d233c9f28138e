"""Config of SelfCF on LightGCN, without negatives.

Zhou et al., TORS 2023, with embedding dropout (SelfCF-ed).

Expected: none published for these data.

    python scripts/train.py --config=configs/selfcf.py --config.dataset=DIR --workdir=RUN
    python scripts/train.py --config=configs/selfcf.py:mmrec ...   # MMRec's options and loop
"""

from configs import common


def get_config(arg: str | None = None):
    model = dict(
        dim=64,
        layers=2,
        perturbation="embedding",
        encoder_dropout=False,
        eps=1e-7,
        l_w=0.0,
        dropout=0.5,
    )
    return common.preset(
        arg,
        default=common.base("selfcf", **model),
        mmrec=common.mmrec(common.base("selfcf", **(model | dict(encoder_dropout=True)))),
    )
