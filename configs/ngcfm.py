"""Config of NGCF-M: NGCF with VBPR's content space beside it.

It is that of Ducho meets Elliot (arXiv 2409.15857).

Expected: none published for these data. lr is to be chosen from 1e-4 to 1e-2, l_w from 1e-5 and
1e-2 (arXiv 2409.15857). Elliot's batches have distinct users; here one may come twice.

    python scripts/train.py --config=configs/ngcfm.py --config.dataset=DIR --workdir=RUN
    python scripts/train.py --config=configs/ngcfm.py:elliot ...   # Elliot's options and loop
"""

from configs import common


def get_config(arg: str | None = None):
    model = dict(
        dim=64,
        layers=3,
        node_dropout=0.1,
        combine="mean",
        evaluation_dropout=0.0,
        l_w=1e-2,
        message_dropout=0.1,
    )
    elliot = common.elliot(common.base("ngcfm", **(model | dict(evaluation_dropout=0.1))))
    elliot.sampler = "users"
    configs = {"default": common.base("ngcfm", **model), "elliot": elliot}
    for config in configs.values():
        config.features = "auto"
    return common.preset(arg, **configs)
