"""Impute the absent rows of a feature store; measure homophily.

python scripts/impute.py --dataset=DIR --features=STORE --out=STORE --method=feat_prop --top_k=20
python scripts/impute.py --dataset=DIR --features=STORE --out=STORE --method=ae --other=STORE
python scripts/impute.py --dataset=DIR --features=STORE --out=STORE --method=mean --mask=0.5
python scripts/impute.py --dataset=DIR --features=STORE --homophily

`--mask` hides a share of the present rows first.
"""

import math

from _app import run
from absl import flags

from mmjax import store
from mmjax.core.errors import InputError
from mmjax.data.dataset import Dataset, load
from mmjax.features.homophily import homophily
from mmjax.features.imputation.impute import METHODS, impute, resolve
from mmjax.features.imputation.missing import Gaps

FLAGS = flags.FLAGS
flags.DEFINE_string("dataset", None, "Prepared folder (prepare.py).", required=True)
flags.DEFINE_string("features", None, "Store with absent rows.", required=True)
flags.DEFINE_string("out", None, "Store to write: folder, gs:// or s3:// URL.")
flags.DEFINE_string("method", None, f"{', '.join(METHODS)}.")
flags.DEFINE_string("other", None, "Store of the other modality, for ae and gae.")
flags.DEFINE_integer("top_k", None, "Co-purchased items of each; 20 if not given.")
flags.DEFINE_integer("layers", None, "Steps of propagation; 20 if not given.")
flags.DEFINE_float("alpha", None, "Restart probability of pers_page_rank; 0.1 if not given.")
flags.DEFINE_float("time", None, "Diffusion time of heat; 5 if not given.")
flags.DEFINE_integer("epochs", None, "Of ae and gae; 1000 if not given.")
flags.DEFINE_float("lr", None, "Of ae (0.01 if not given) and gae (1e-4).")
flags.DEFINE_integer("batch", None, "Of ae; 32 if not given.")
flags.DEFINE_float("l1", None, "Of ae and gae: weight of the output's L1 norm.")
flags.DEFINE_integer("seed", None, "Of random, ae and gae; 0 if not given.")
flags.DEFINE_float("mask", 0.0, "Share of the present rows to hide first, in [0, 1).")
flags.DEFINE_integer("mask_seed", 0, "Of which rows are hidden.")
flags.DEFINE_bool("homophily", False, "Print feature homophily; alone, nothing is written.")
flags.DEFINE_bool("overwrite", False, "Replace a store that is there.")
OPTIONS = ("top_k", "layers", "alpha", "time", "epochs", "lr", "batch", "l1", "seed")


def main() -> None:
    if not FLAGS.homophily or FLAGS.method or FLAGS.out:
        for name in ("method", "out"):
            if not getattr(FLAGS, name):
                raise InputError(f"--{name} is missing; only --homophily goes without it")
    dataset = load(FLAGS.dataset)
    if FLAGS.homophily:
        say_homophily(dataset, FLAGS.features)
    if not FLAGS.method:
        return
    options = {name: getattr(FLAGS, name) for name in OPTIONS}
    if FLAGS.homophily and "top_k" not in resolve(FLAGS.method, {}):
        options.pop("top_k")  # meant for the homophily only
    summary = impute(
        dataset,
        FLAGS.features,
        FLAGS.out,
        method=FLAGS.method,
        options=options,
        other=FLAGS.other,
        mask_rate=FLAGS.mask,
        mask_seed=FLAGS.mask_seed,
        overwrite=FLAGS.overwrite,
    )
    used = " ".join(f"{name}={value}" for name, value in summary.options.items())
    print(
        f"{summary.store}: {summary.items} items x {summary.width}, {summary.masked} masked, "
        f"{summary.imputed} imputed by {' '.join(filter(None, (FLAGS.method, used)))}, "
        f"{summary.absent} still absent"
    )
    if FLAGS.homophily:
        say_homophily(dataset, FLAGS.out)


def say_homophily(dataset: Dataset, url: str) -> None:
    opened = store.open_store(url, item_hash=dataset.item_hash(), n_items=dataset.n_items)
    gaps = Gaps(dataset, *opened.read())
    neighbours = gaps.co_purchase(20 if FLAGS.top_k is None else FLAGS.top_k)
    value = homophily(gaps.features, gaps.present, neighbours)
    shown = "not defined" if math.isnan(value) else f"{value:.4f}"
    print(f"{url}: feature homophily {shown} over {gaps.present.sum()} present items")


if __name__ == "__main__":
    run(main)
