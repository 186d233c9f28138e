r"""Config of AttributeItemKNN: ItemKNN on ratings and described attributes.

It is that of arXiv 2508.04571.

Expected: Allrecipes, protocol elliot with threshold 4, both models' five-slot attributes (README).

    python scripts/describe.py --dataset=DIR --answers=FILE.csv --out=DIR/described
    python scripts/train.py --config=configs/attributeitemknn.py:elliot --config.dataset=DIR \
        --config.features=attributes=DIR/described/attributes --workdir=RUN
"""

from configs import common


def get_config(arg: str | None = None):
    options = dict(
        neighbours=200,
        similarity="cosine",
        weight=1.0,
        feature_weighting="none",
        shrink=10.0,
        alpha=0.5,
        beta=0.5,
        implicit=False,
        neighbours_of="candidate",
        keep_self=False,
        reproduce_constant_attributes=False,
    )
    rule = dict(neighbours_of="history", keep_self=True, neighbours=50, shrink=0.0)
    configs = {
        "default": common.base("attributeitemknn", **options),
        "elliot": common.elliot(common.base("attributeitemknn", **options | rule)),
        "mmrec": common.mmrec(common.base("attributeitemknn", **options)),
    }
    for config in configs.values():
        config.features = "auto"
    return common.preset(arg, **configs)
