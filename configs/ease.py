"""Config of EASE^R: a linear autoencoder in closed form.

Steck, WWW 2019. It is dense in the items.

Expected: none published for these data. l2 is to be chosen on valid, from 10 to 1000.

    python scripts/train.py --config=configs/ease.py --config.dataset=DIR --workdir=RUN
    python scripts/train.py --config=configs/ease.py:elliot ...   # ratings, counts on the diagonal
"""

from configs import common


def get_config(arg: str | None = None):
    options = dict(l2=250.0, implicit=True, diagonal="gram", max_items=30_000)
    elliot_options = options | dict(l2=1000.0, implicit=False, diagonal="counts")
    return common.preset(
        arg,
        default=common.base("ease", **options),
        elliot=common.elliot(common.base("ease", **elliot_options)),
        mmrec=common.mmrec(common.base("ease", **options)),
    )
