"""Config of MostPop: items by popularity, alike for every user.

Popularity is the number of train interactions.

Expected: Amazon Baby 2014 on the Ducho-Elliot split, protocol mmrec, test Recall@20 .0577, nDCG@20
.0280; Amazon Toys 2014 .0229 and .0104.

    python scripts/train.py --config=configs/mostpop.py --config.dataset=DIR --workdir=RUN
"""

from configs import common


def get_config(arg: str | None = None):
    return common.preset(
        arg,
        default=common.base("mostpop"),
        elliot=common.elliot(common.base("mostpop")),
        mmrec=common.mmrec(common.base("mostpop")),
    )
