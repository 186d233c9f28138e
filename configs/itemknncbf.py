"""Config of ItemKNNCBF: k-NN of items by their features only.

Ferrari Dacrema et al., RecSys 2019.

Expected: none published for these data. Top 10 and shrink 10 are MMRec's.

    python scripts/train.py --config=configs/itemknncbf.py --config.dataset=DIR --workdir=RUN
    python scripts/train.py --config=configs/itemknncbf.py:mmrec ...   # by MMRec's protocol
"""

from configs import common


def get_config(arg: str | None = None):
    options = dict(top_k=10, shrink=10.0)
    configs = {
        "default": common.base("itemknncbf", **options),
        "elliot": common.elliot(common.base("itemknncbf", **options)),
        "mmrec": common.mmrec(common.base("itemknncbf", **options)),
    }
    for config in configs.values():
        config.features = "auto"
    return common.preset(arg, **configs)
