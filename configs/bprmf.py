"""Config of BPRMF: matrix factorisation on ids, the baseline of VBPR.

Rendle et al., UAI 2009.

Expected: Amazon Baby 2014 on the Ducho-Elliot split, MMRec's options with reg 0.1 and protocol
mmrec, test Recall@20 .0522, nDCG@20 .0260 (MMRec's own run).

    python scripts/train.py --config=configs/bprmf.py:mmrec --config.dataset=DIR --workdir=RUN
"""

from configs import common


def get_config(arg: str | None = None):
    elliot_model = dict(
        dim=64,
        l_w=1e-2,
        l_b=1e-3,
        bias=True,
        ranking_loss="softplus",
        regulariser="squares",
        init="xavier_uniform",
    )
    mmrec_model = dict(
        dim=64,
        l_w=0.1,
        l_b=0.0,
        bias=False,
        ranking_loss="offset",
        regulariser="norms",
        init="xavier_normal",
    )
    return common.preset(
        arg,
        default=common.base("bprmf", **mmrec_model | dict(l_w=1.0)),
        elliot=common.elliot(common.base("bprmf", **elliot_model)),
        mmrec=common.mmrec(common.base("bprmf", **mmrec_model)),
    )
