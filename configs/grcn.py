"""Config of GRCN: edges weighted by users' preferences in each modality.

Wei et al., MM 2020. An edge weighs as much as its user likes what the item looks like.

Expected: Amazon Baby, MMRec's split, Recall@20 .0833, nDCG@20 .0363 (MMRec survey; its routings do
nothing, hence routings=0 in the preset). Elliot, whose weights of half the edges are misplaced:
Office .0667 and .0339, Toys .0831 and .0436 (Formalizing Multimedia Recommendation).

    python scripts/train.py --config=configs/grcn.py --config.dataset=DIR --workdir=RUN
    python scripts/train.py --config=configs/grcn.py:elliot ...   # Elliot's options and loop
    python scripts/train.py --config=configs/grcn.py:mmrec ...    # MMRec's
"""

from configs import common


def get_config(arg: str | None = None):
    model = dict(
        dim=64,
        content_dim=64,
        layers=2,
        routings=3,
        weight_mode="confid",
        confidence="source",
        pruning=True,
        normalize_layers=False,
        content_penalty="weighted",
        init="xavier_normal",
        projection_init="xavier_normal",
        joint=True,
        l_w=1e-3,
    )
    elliot_model = dict(
        content_dim=128,
        confidence="target",
        normalize_layers=True,
        content_penalty="unweighted",
        init="xavier_uniform",
        projection_init="linear",
        joint=False,
        l_w=1e-2,
    )
    mmrec_model = dict(routings=0, content_penalty="first_table")
    configs = {
        "default": common.base("grcn", **model),
        "elliot": common.elliot(common.base("grcn", **(model | elliot_model))),
        "mmrec": common.mmrec(common.base("grcn", **(model | mmrec_model))),
    }
    for config in configs.values():
        config.features = "auto"
    return common.preset(arg, **configs)
