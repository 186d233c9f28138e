"""Config of FREEDOM: a frozen item graph, a pruned user-item graph.

Zhou and Shen, MM 2023.

Expected: Amazon Baby in Elliot with CLIP features, Recall@20 .0895, nDCG@20 .0436 (Ducho meets
Elliot); Toys .1249 and .0660, Office .0884 and .0469 (Formalizing Multimedia Recommendation).
`weights` names the image modality: `visual` here; --config.model.weights.visual=0.1.

    python scripts/train.py --config=configs/freedom.py --config.dataset=DIR --workdir=RUN
    python scripts/train.py --config=configs/freedom.py:elliot ...   # Elliot's options and loop
    python scripts/train.py --config=configs/freedom.py:mmrec ...    # MMRec's
"""

from configs import common


def get_config(arg: str | None = None):
    model = dict(
        dim=64,
        layers=2,
        item_layers=1,
        top_k=10,
        weights={"visual": 0.1},
        single_weight=1.0,
        drop=0.8,
        trainable_features=True,
        l_w=1e-3,
    )
    configs = {
        "default": common.base("freedom", **model),
        "elliot": common.elliot(
            common.base("freedom", **(model | dict(single_weight=0.1, l_w=1e-2)))
        ),
        "mmrec": common.mmrec(common.base("freedom", **model)),
    }
    for config in configs.values():
        config.features = "auto"
    return common.preset(arg, **configs)
