"""Config of UserKNN: items that similar users have chosen.

Resnick et al., CSCW 1994. Nothing is trained.

Expected: none published for these data.

    python scripts/train.py --config=configs/userknn.py --config.dataset=DIR --workdir=RUN
    python scripts/train.py --config=configs/userknn.py:elliot ...   # upstream Elliot's options
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
        neighbours_of="user",
        keep_self=False,
    )
    rule = dict(implicit=False, neighbours_of="neighbour", keep_self=True)
    elliot = options | rule | dict(neighbours=40, shrink=0.0)
    return common.preset(
        arg,
        default=common.base("userknn", **options),
        elliot=common.elliot(common.base("userknn", **elliot)),
        mmrec=common.mmrec(common.base("userknn", **options)),
    )
