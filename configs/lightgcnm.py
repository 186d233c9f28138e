"""Config of LightGCN-M: LightGCN with content in or beside the items.

It is that of the Elliot forks: items are their content, or have it beside them.

Expected: none published for these data. lr is to be chosen from 1e-4 to 1e-2, l_w from 1e-5 and
1e-2 (arXiv 2408.11767).

    python scripts/train.py --config=configs/lightgcnm.py --config.dataset=DIR --workdir=RUN
    python scripts/train.py --config=configs/lightgcnm.py:elliot ...   # Elliot's loop, sigmoid
    python scripts/train.py --config=configs/lightgcnm.py:head ...     # as in arXiv 2408.11767
"""

from configs import common


def get_config(arg: str | None = None):
    model = dict(
        dim=64,
        layers=3,
        content="items",
        aggregation="concat",
        trainable_features=True,
        eps=0.0,
        init="xavier_uniform",
        sigmoid=False,
        l_w=1e-5,
    )
    head = common.elliot(
        common.base("lightgcnm", **(model | dict(content="head", init="normal0.1")))
    )
    # That paper's loop: validation after each epoch, patience 5.
    head.update({"eval_every": 1, "patience": 5})
    configs = {
        "default": common.base("lightgcnm", **model),
        "elliot": common.elliot(common.base("lightgcnm", **(model | dict(sigmoid=True)))),
        "head": head,
    }
    for name, config in configs.items():
        config.features = "auto"
        config.sampler = "interactions" if name == "default" else "users"
    return common.preset(arg, **configs)
