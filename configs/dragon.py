"""Config of DRAGON: user and item graphs beside the user-item graph.

Zhou et al., ECAI 2023.

Expected: no number at hand. MMRec fills short lists of peers at random, as in its preset. `weights`
names the image modality: `visual` here; --config.model.weights.visual=0.1.

    python scripts/train.py --config=configs/dragon.py --config.dataset=DIR --workdir=RUN
    python scripts/train.py --config=configs/dragon.py:mmrec ...   # MMRec's options and loop
"""

from configs import common


def get_config(arg: str | None = None):
    model = dict(
        dim=64,
        layers=2,
        item_layers=1,
        peers=40,
        fill=False,
        top_k=10,
        weights={"visual": 0.1},
        l_w=1e-3,
    )
    configs = {
        "default": common.base("dragon", **model),
        "mmrec": common.mmrec(common.base("dragon", **(model | dict(fill=True)))),
    }
    for config in configs.values():
        config.features = "auto"
    return common.preset(arg, **configs)
