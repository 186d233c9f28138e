"""Config of MICRO: a learned item graph a modality, fused and contrasted.

Zhang et al., TKDE 2022.

Expected: no published number on a split that this project has. `authors` is the loop of the
published code: batch 1024, lr 5e-4, valid every 5 epochs with patience 10, seed 123.

    python scripts/train.py --config=configs/micro.py --config.dataset=DIR --workdir=RUN
    python scripts/train.py --config=configs/micro.py:authors ...
"""

from configs import common


def get_config(arg: str | None = None):
    model = dict(
        dim=64,
        layers=2,
        item_layers=1,
        top_k=10,
        skip=0.9,
        trainable_features=True,
        l_w=1e-5,
        cl_weight=0.03,
        temperature=0.5,
    )
    configs = {"default": common.base("micro", **model), "authors": common.base("micro", **model)}
    for config in configs.values():
        config.features = "auto"
        config.lr_decay = (0.96, 50.0)
    loop = dict(epochs=1000, batch_size=1024, lr=5e-4, eval_every=5, patience=10, seed=123)
    configs["authors"].update(loop)
    return common.preset(arg, **configs)
