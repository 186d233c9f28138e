"""Config of iALS: matrix factorisation by alternating least squares.

Hu et al., ICDM 2008, in the form of Rendle et al., RecSys 2022.

Expected: none published for these data. The options are those of the latter for MovieLens-20M, but
for a smaller width. `unobserved` and `l2` are to be chosen on valid, from 0.003 to 1 and from 0.001
to 0.1: the sparser the data, the smaller; where they are too large the tables shrink to nothing and
the ranking to popularity.

    python scripts/train.py --config=configs/ials.py --config.dataset=DIR --workdir=RUN
"""

from configs import common


def get_config(arg: str | None = None):
    options = dict(dim=64, iterations=16, unobserved=0.1, l2=0.003, exponent=1.0, stddev=0.1)
    return common.preset(
        arg,
        default=common.base("ials", **options),
        elliot=common.elliot(common.base("ials", **options)),
        mmrec=common.mmrec(common.base("ials", **options)),
    )
