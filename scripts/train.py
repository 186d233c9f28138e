"""Train one recommender and write results.json.

python scripts/train.py --config=configs/vbpr.py --config.dataset=DIR --workdir=RUN
python scripts/train.py ... --explain_sharding   # arrays, sharding, traffic; nothing is trained

After a kill the same command goes on.
"""

from _app import run
from absl import flags
from ml_collections import config_flags

from mmjax.report import runs
from mmjax.training import sharding_report, train

CONFIG = config_flags.DEFINE_config_file("config", help_string="configs/NAME.py[:preset]")
WORKDIR = flags.DEFINE_string("workdir", None, "folder of this run", required=True)
EXPLAIN = flags.DEFINE_bool("explain_sharding", False, "say what the mesh does to it, and end")


def main() -> None:
    if EXPLAIN.value:
        print(sharding_report.explain(CONFIG.value))
        return
    results = train.run(CONFIG.value, WORKDIR.value)
    print(runs.card(results))
    print(
        f"wrote {WORKDIR.value}/results.json, metrics.jsonl, per_user.npz, checkpoints, tensorboard"
    )


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    run(main, processes="joined")
