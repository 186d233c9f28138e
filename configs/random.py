"""Config of Random: uniform scores, the lower bound of every table.

Expected: Recall@k is k over the number of candidates.

    python scripts/train.py --config=configs/random.py --config.dataset=DIR --workdir=RUN
"""

from configs import common


def get_config(arg: str | None = None):
    return common.preset(
        arg,
        default=common.base("random"),
        elliot=common.elliot(common.base("random")),
        mmrec=common.mmrec(common.base("random")),
    )
