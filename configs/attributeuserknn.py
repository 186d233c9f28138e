r"""Config of AttributeUserKNN: k-NN of users by their items' attributes.

Gantner et al., RecSys 2011.

Expected: none published for these data.

    python scripts/describe.py --dataset=DIR --answers=FILE.csv --out=DIR/described
    python scripts/train.py --config=configs/attributeuserknn.py --config.dataset=DIR \
        --config.features=attributes=DIR/described/attributes --workdir=RUN
    python scripts/train.py --config=configs/attributeuserknn.py:elliot ...   # upstream Elliot's
"""

from configs import common


def get_config(arg: str | None = None):
    options = dict(
        neighbours=200,
        similarity="cosine",
        profile="binary",
        shrink=0.0,
        alpha=0.5,
        beta=0.5,
        implicit=True,
        neighbours_of="user",
        keep_self=False,
    )
    rule = dict(implicit=False, neighbours_of="neighbour", keep_self=True, neighbours=40)
    configs = {
        "default": common.base("attributeuserknn", **options),
        "elliot": common.elliot(common.base("attributeuserknn", **options | rule)),
        "mmrec": common.mmrec(common.base("attributeuserknn", **options)),
    }
    for config in configs.values():
        config.features = "auto"
    return common.preset(arg, **configs)
