"""Config of MMGCN: a graph of users and items in each modality.

Wei et al., MM 2019.

Expected: Amazon Baby, MMRec's split, Recall@20 .0615, nDCG@20 .0261 (MMRec survey; tables that it
never trains, as in the preset). Elliot: Office .0798 and .0405, Toys .0426 and .0200 (Formalizing
Multimedia Recommendation). The presets name the modalities `visual` and `textual`; the default
projects each, whatever its name, to 256.

    python scripts/train.py --config=configs/mmgcn.py --config.dataset=DIR --workdir=RUN
    python scripts/train.py --config=configs/mmgcn.py:elliot ...   # Elliot's options and loop
    python scripts/train.py --config=configs/mmgcn.py:mmrec ...    # MMRec's
"""

from configs import common


def get_config(arg: str | None = None):
    model = dict(
        dim=64,
        layers=3,
        latent=256,
        concat=True,
        untrained_tables=False,
        init="xavier_normal",
        merge_init="linear",
        joint=True,
        l_w=1e-3,
    )
    published = {"visual": 256, "textual": 0}
    elliot_model = dict(
        latent=published,
        concat=False,
        init="xavier_uniform",
        merge_init="xavier_uniform",
        joint=False,
        l_w=1e-2,
    )
    mmrec_model = dict(latent=published, untrained_tables=True)
    configs = {
        "default": common.base("mmgcn", **model),
        "elliot": common.elliot(common.base("mmgcn", **(model | elliot_model))),
        "mmrec": common.mmrec(common.base("mmgcn", **(model | mmrec_model))),
    }
    for config in configs.values():
        config.features = "auto"
    return common.preset(arg, **configs)
