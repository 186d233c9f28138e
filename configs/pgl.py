"""Config of PGL: content propagated over principal subgraphs.

Yu et al., AAAI 2025. The subgraphs are of the user-item graph.

Expected: no number at hand. The authors' runs for Amazon Baby have cl_weight .05 and drop .2, for
both subgraphs; MMRec's file has cl_weight 0. `weights` names the image modality: `visual` here;
--config.model.weights.visual=0.1.

    python scripts/train.py --config=configs/pgl.py --config.dataset=DIR --workdir=RUN
    python scripts/train.py --config=configs/pgl.py --config.model.subgraph=global ...
    python scripts/train.py --config=configs/pgl.py:mmrec ...   # MMRec's options and loop
"""

from configs import common


def get_config(arg: str | None = None):
    model = dict(
        dim=64,
        layers=2,
        item_layers=1,
        top_k=10,
        weights={"visual": 0.1},
        subgraph="local",
        keep=0.3,
        trainable_features=True,
        temperature=0.2,
        drop=0.2,
        cl_weight=0.05,
    )
    configs = {
        "default": common.base("pgl", **model),
        "mmrec": common.mmrec(common.base("pgl", **(model | dict(cl_weight=0.0)))),
    }
    for config in configs.values():
        config.features = "auto"
        config.lr_decay = (0.96, 50.0)
    return common.preset(arg, **configs)
