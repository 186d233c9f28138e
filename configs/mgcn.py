"""Config of MGCN: content purified, propagated and fused by behaviour.

Yu et al., MM 2023.

Expected: no published number on a split that this project has. The grids are l_w 1e-4, cl_weight
.001, .01, .1, and in Elliot's fork lr 1e-4, 1e-3, 1e-2.

    python scripts/train.py --config=configs/mgcn.py --config.dataset=DIR --workdir=RUN
    python scripts/train.py --config=configs/mgcn.py:elliot ...   # its fork's graphs and loop
    python scripts/train.py --config=configs/mgcn.py:mmrec ...    # MMRec's
"""

from configs import common


def get_config(arg: str | None = None):
    mmrec_model = dict(
        dim=64,
        layers=2,
        item_layers=1,
        top_k=10,
        item_graph="cosine",
        user_view="sym",
        trainable_features=True,
        l_w=1e-4,
        cl_weight=1e-2,
        temperature=0.2,
    )
    elliot_model = mmrec_model | dict(item_graph="uniform", user_view="none")
    configs = {
        "default": common.base("mgcn", **mmrec_model),
        "elliot": common.elliot(common.base("mgcn", **elliot_model)),
        "mmrec": common.mmrec(common.base("mgcn", **mmrec_model)),
    }
    configs["elliot"].update(eval_every=1, patience=5)
    for config in configs.values():
        config.features = "auto"
        config.lr_decay = (0.96, 50.0)
    return common.preset(arg, **configs)
