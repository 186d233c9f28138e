"""The fields that every training config has, with their defaults."""

from ml_collections import ConfigDict


def base(recommender: str, **model) -> ConfigDict:
    """A config for one recommender; `model` holds its options.

    The defaults are MMRec's batch size and optimiser, with protocol `strict`.
    """
    return ConfigDict(
        {
            "dataset": "",  # a prepared folder
            "recommender": recommender,  # a module of mmjax.recommenders, or my_package.my_model
            "model": model,
            "features": "",  # NAME=STORE,NAME=STORE or auto
            "features_dtype": "float32",  # bfloat16: half the bytes, products summed in float32
            "protocol": "strict",  # strict | mmrec | elliot
            "threshold": 0.0,  # held-out ratings below it are not relevant
            "cutoffs": (5, 10, 20, 50),
            "metric": "recall@20",  # chooses the epoch, on valid
            "epochs": 200,
            "patience": 20,  # evaluations without improvement before it stops; 0 never stops
            "eval_every": 1,
            "batch_size": 2048,
            "lr": 1e-3,
            "lr_decay": (1.0, 50.0),
            "optimizer": "scale_by_adam()",
            "sampler": "interactions",  # interactions | users
            "seed": 0,
            "mesh": "data=-1",
            "checkpoint_seconds": 30.0,
        }
    )


def elliot(config: ConfigDict) -> ConfigDict:
    """The loop of Elliot's multimodal forks: 200 epochs, valid every 10, batch 1024, seed 123."""
    config.update(
        {
            "protocol": "elliot",
            "batch_size": 1024,
            "eval_every": 10,
            "patience": 0,
            "seed": 123,
        }
    )
    return config


def mmrec(config: ConfigDict) -> ConfigDict:
    """The loop of MMRec: up to 1000 epochs, valid after each, patience 20, seed 999."""
    config.update({"protocol": "mmrec", "epochs": 1000, "patience": 20, "seed": 999})
    return config


def preset(name: str | None, **presets: ConfigDict) -> ConfigDict:
    """The variant that `--config=FILE.py:NAME` asks for; the first one when it names none."""
    if not name:
        return next(iter(presets.values()))
    if name not in presets:
        raise ValueError(f"no preset {name!r}; there are {', '.join(presets)}")
    return presets[name]
