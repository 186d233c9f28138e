"""Config of LATTICE: learned and frozen item graphs beside LightGCN.

Zhang et al., MM 2021. The item graphs are of features.

Expected: MMRec, Recall@20 and nDCG@20 .0850 and .0370 on Amazon Baby, .0953 and .0421 on Sports
(MMRec survey). Elliot, .0838 and .0413 on Baby with MMFashion and SBERT features (Ducho meets
Elliot); .1165 and .0617 on Toys, .1029 and .0566 on Office (Formalizing Multimedia
Recommendation). Elliot's sampler draws distinct users for a batch; `users` draws with replacement.

    python scripts/train.py --config=configs/lattice.py --config.dataset=DIR --workdir=RUN
    python scripts/train.py --config=configs/lattice.py:elliot ...   # Elliot's options and loop
    python scripts/train.py --config=configs/lattice.py:mmrec ...    # MMRec's
"""

from configs import common


def get_config(arg: str | None = None):
    mmrec_model = dict(
        dim=64,
        layers=2,
        item_layers=1,
        top_k=10,
        skip=0.9,
        norm="left",
        normalize=False,
        self_one=False,
        trainable_features=True,
        l_w=1e-4,
    )
    elliot_model = mmrec_model | dict(
        top_k=20, skip=0.7, norm="both", normalize=True, self_one=True, l_w=1e-2
    )
    configs = {
        "default": common.base("lattice", **mmrec_model),
        "elliot": common.elliot(common.base("lattice", **elliot_model)),
        "mmrec": common.mmrec(common.base("lattice", **mmrec_model)),
    }
    configs["elliot"].sampler = "users"
    for config in configs.values():
        config.features = "auto"
        config.lr_decay = (0.96, 50.0)
    return common.preset(arg, **configs)
