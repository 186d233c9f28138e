"""Config of LGMRec: local graphs and a global hypergraph.

Guo et al., AAAI 2024. The local graphs are of ids and of content.

Expected: no number at hand. The options are MMRec's for Amazon Baby; for Sports it has drop .6 and
alpha .6, for Clothing hyper_layers 2, hyperedges 64, drop .8 and alpha .2.

    python scripts/train.py --config=configs/lgmrec.py --config.dataset=DIR --workdir=RUN
    python scripts/train.py --config=configs/lgmrec.py:mmrec ...   # MMRec's loop
"""

from configs import common


def get_config(arg: str | None = None):
    model = dict(
        dim=64,
        layers=2,
        modal_layers=2,
        hyper_layers=1,
        hyperedges=4,
        alpha=0.3,
        temperature=0.2,
        noisy_evaluation=False,
        drop=0.5,
        cl_weight=1e-4,
        l_w=1e-6,
    )
    configs = {
        "default": common.base("lgmrec", **model),
        "mmrec": common.mmrec(common.base("lgmrec", **(model | dict(noisy_evaluation=True)))),
    }
    for config in configs.values():
        config.features = "auto"
    return common.preset(arg, **configs)
