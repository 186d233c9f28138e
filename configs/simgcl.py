"""Config of SimGCL: LightGCN contrasting two noisy copies of its states.

Yu et al., SIGIR 2022.

Expected: none published for these data. lr is to be chosen from 1e-4 to 1e-2, cl_weight from .5 and
2 (arXiv 2409.15857). The authors' own setting on Yelp2018 has 2 layers and cl_weight .5.

    python scripts/train.py --config=configs/simgcl.py --config.dataset=DIR --workdir=RUN
    python scripts/train.py --config=configs/simgcl.py:elliot ...   # Elliot's loop
"""

from configs import common


def get_config(arg: str | None = None):
    model = dict(
        dim=64,
        layers=2,
        ranking_loss="offset",
        offset=1e-5,
        regulariser="norms",
        l_w=1e-4,
        cl_weight=0.5,
        noise=0.1,
        temperature=0.2,
    )
    return common.preset(
        arg,
        default=common.base("simgcl", **model),
        elliot=common.elliot(common.base("simgcl", **(model | dict(layers=3)))),
    )
