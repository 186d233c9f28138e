"""The sweep of test_running.py as a config file, with a checkpoint after every epoch."""

from configs import common


def get_config(arg: str | None = None):
    loop = dict(epochs=4, batch_size=512, cutoffs=(10, 20), mesh="data=1", checkpoint_seconds=0.0)
    tune = {"lr": (1e-5, 2e-2)}
    return common.sweep(
        {
            "bprmf": common.study("bprmf", tune, compare={}, **loop),
            "vbpr": common.study("vbpr", tune, **loop),
        },
        compare={"features": common.controls(("shuffle",))},
        seeds=(3, 4),
    )
