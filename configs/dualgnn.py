"""Config of DualGNN: content on the user-item and user graphs.

Wang et al., IEEE TMM 2023. The user graph links users with shared items.

Expected: no number at hand. MMRec sums modalities in place and fills short lists of peers at
random, as in its preset.

    python scripts/train.py --config=configs/dualgnn.py --config.dataset=DIR --workdir=RUN
    python scripts/train.py --config=configs/dualgnn.py:mmrec ...   # MMRec's options and loop
"""

from configs import common


def get_config(arg: str | None = None):
    model = dict(dim=64, layers=2, peers=40, fill=False, sum_in_place=False, l_w=1e-3)
    mmrec_model = model | dict(fill=True, sum_in_place=True)
    configs = {
        "default": common.base("dualgnn", **model),
        "mmrec": common.mmrec(common.base("dualgnn", **mmrec_model)),
    }
    for config in configs.values():
        config.features = "auto"
    return common.preset(arg, **configs)
