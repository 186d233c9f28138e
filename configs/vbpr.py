"""Config of VBPR on the features of any number of modalities.

He and McAuley, AAAI 2016.

Expected: MovieLens-100k with posters and plots, protocol strict, Recall@20 .332 (README). Amazon
Baby, R50 + SBERT, Elliot's protocol, Recall@20 .0613, nDCG@20 .0309 (Ducho 2.0 demo); MMRec's own
split and features, Recall@20 .0663, nDCG@20 .0284 (MMRec survey).

    python scripts/train.py --config=configs/vbpr.py --config.dataset=DIR --workdir=RUN
    python scripts/train.py --config=configs/vbpr.py:elliot ...   # Elliot's options and loop
    python scripts/train.py --config=configs/vbpr.py:mmrec ...    # MMRec's
"""

from configs import common


def get_config(arg: str | None = None):
    elliot_model = dict(
        dim=64,
        l_w=1e-2,
        normalize=True,
        ranking_loss="softplus",
        regulariser="squares",
        content_init="normal",
        projection_init="linear",
    )
    mmrec_model = dict(
        dim=64,
        l_w=1.0,
        normalize=False,
        ranking_loss="offset",
        regulariser="norms",
        content_init="joint",
        projection_init="xavier_normal",
    )
    configs = {
        "default": common.base("vbpr", **mmrec_model),
        "elliot": common.elliot(common.base("vbpr", **elliot_model)),
        "mmrec": common.mmrec(common.base("vbpr", **mmrec_model)),
    }
    for config in configs.values():
        config.features = "auto"
    return common.preset(arg, **configs)
