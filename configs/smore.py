"""Config of SMORE: modalities denoised and fused in their spectra.

Ong and Khong, WSDM 2025.

Expected: no number at hand. The options are the authors' for Amazon Baby but for the neighbours, 40
by image and 15 by text there: --config.model.top_k="(40,15)", in the order of the modalities. For
Sports they are layers 3, top_k 10, cl_weight .03 and drop 0, for Clothing layers 3, top_k 40 and
10, l_w 1e-5 and drop 0.

    python scripts/train.py --config=configs/smore.py --config.dataset=DIR --workdir=RUN
    python scripts/train.py --config=configs/smore.py:mmrec ...   # MMRec's loop
"""

from configs import common


def get_config(arg: str | None = None):
    model = dict(
        dim=64,
        layers=4,
        item_layers=1,
        top_k=(10,),
        trainable_features=True,
        drop=0.1,
        temperature=0.2,
        cl_weight=1e-2,
        l_w=1e-4,
    )
    configs = {
        "default": common.base("smore", **model),
        "mmrec": common.mmrec(common.base("smore", **model)),
    }
    for config in configs.values():
        config.features = "auto"
        config.lr_decay = (0.96, 50.0)
    return common.preset(arg, **configs)
