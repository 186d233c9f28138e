r"""Sweep: real features against noise of the same shape.

It follows arXiv 2508.04571 and asks if recommenders use content, or only the capacity that content
adds.

VBPR, BM3, FREEDOM and LATTICE on real features and on three controls of the same shape: Gaussian
noise, noise of the features' mean and covariance, and the features given to other items (which the
paper does not have); BPRMF and LightGCN beside them. Protocol and grid of the paper: Elliot's loop
with relevance threshold 4, rates {1e-4, 5e-4, 1e-3, 5e-3, 1e-2}, widths {64, 128, 256} and weights
{.01, .1}, LATTICE validated once, at the end; BPRMF and LightGCN by TPE with 30 points. One seed
there, three here.

Expected: the paper's tables could not be had; its abstract says that gains may come from capacity.

    python scripts/sweep.py --config=configs/sweeps/noise_controls.py --workdir=SWEEP \
      --config.dataset=DIR --config.features=visual=clip_image,textual=clip_text

`small` is for MovieLens-100k or a world of `prepare.py`: protocol strict, width 64, a grid of four
points and early stopping, BPRMF, VBPR and FREEDOM.
"""

from configs import common

CONTROLS = ("gaussian", "multivariate", "shuffle")


def get_config(arg: str | None = None):
    loop = dict(threshold=4.0)
    grid = dict(
        lr=(1e-4, 5e-4, 1e-3, 5e-3, 1e-2),
        model=dict(dim=(64, 128, 256), l_w=(0.01, 0.1)),
    )
    uncompared = dict(compare={}, search="tpe", **loop)
    factorised = dict(
        lr=common.between(1e-5, 1.0, log=True),
        model=dict(dim=(64, 128, 256), l_w=common.between(1e-5, 0.1, log=True)),
    )
    biased = factorised | dict(
        model=factorised["model"] | dict(l_b=common.between(1e-5, 0.1, log=True))
    )
    paper = common.sweep(
        {
            "bprmf": common.study("bprmf:elliot", biased, **uncompared),
            "lightgcn": common.study("lightgcn:elliot", factorised, **uncompared),
            **{
                name: common.study(f"{name}:elliot", grid, **loop)
                for name in ("vbpr", "bm3", "freedom")
            },
            "lattice": common.study(
                "lattice:elliot", grid, model=dict(top_k=10), eval_every=200, **loop
            ),
        },
        compare={"features": common.controls(CONTROLS)},
        seeds=(123, 124, 125),
    )
    loop = dict(epochs=60, eval_every=2, patience=4)
    grid = dict(lr=(2e-3, 1e-2), model=dict(l_w=(0.1, 1.0)))
    small = common.sweep(
        {
            "bprmf": common.study("bprmf", grid, compare={}, **loop),
            "vbpr": common.study("vbpr", grid, **loop),
            "freedom": common.study(
                "freedom",
                dict(lr=grid["lr"], model=dict(l_w=(1e-3, 1e-2))),
                model=dict(trainable_features=False),
                **loop,
            ),
        },
        compare={"features": common.controls(CONTROLS)},
        seeds=(0, 1, 2),
    )
    return common.preset(arg, default=paper, small=small)
