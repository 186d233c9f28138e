"""Config of SGL: LightGCN contrasting two damaged views of the graph.

Wu et al., SIGIR 2021.

Expected: none published for these data. lr is to be chosen from 1e-4 to 1e-2, l_w from 1e-5 and
1e-2 (arXiv 2408.11767); the authors have l_w 1e-4, cl_weight .1 and drop .1 on Yelp2018.

    python scripts/train.py --config=configs/sgl.py --config.dataset=DIR --workdir=RUN
    python scripts/train.py --config=configs/sgl.py:elliot ...   # Elliot's loop
"""

from configs import common


def get_config(arg: str | None = None):
    model = dict(
        dim=64, layers=3, views="edges", drop=0.1, l_w=1e-4, cl_weight=0.1, temperature=0.2
    )
    elliot = common.elliot(common.base("sgl", **(model | dict(l_w=1e-5))))
    elliot.sampler = "users"
    return common.preset(arg, default=common.base("sgl", **model), elliot=elliot)
