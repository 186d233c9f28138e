"""Config of LightGCN: linear propagation on the user-item graph.

He et al., SIGIR 2020.

Expected: Amazon Baby 2014 on the Ducho-Elliot split, MMRec's options with reg 1e-4 and protocol
mmrec, test Recall@20 .0772, nDCG@20 .0392 (MMRec's own run); MMRec's split, .0754 and .0328.

Elliot ranks by sigma(s), which ties large scores in float32: `:elliot` does.

    python scripts/train.py --config=configs/lightgcn.py:mmrec --config.dataset=DIR --workdir=RUN
"""

from configs import common


def get_config(arg: str | None = None):
    elliot_model = dict(
        dim=64,
        layers=3,
        l_w=1e-5,
        eps=0.0,
        ranking_loss="softplus",
        regulariser="squares",
        init="normal0.1",
        sigmoid=True,
    )
    mmrec_model = dict(
        dim=64,
        layers=2,
        l_w=1e-4,
        eps=1e-7,
        ranking_loss="offset",
        regulariser="norms",
        init="xavier_uniform",
        sigmoid=False,
    )
    elliot = common.elliot(common.base("lightgcn", **elliot_model))
    elliot.sampler = "users"
    return common.preset(
        arg,
        default=common.base("lightgcn", **mmrec_model),
        elliot=elliot,
        mmrec=common.mmrec(common.base("lightgcn", **mmrec_model)),
    )
