"""Rank a run's best parameters again and print the metrics.

python scripts/evaluate.py --workdir=RUN [--split=test] [--protocol=mmrec] [--cutoffs=10,20]

It ranks under the run's protocol or another.
"""

from _app import run
from absl import flags

from mmjax.core import files, storage
from mmjax.core.errors import InputError
from mmjax.parallel import distributed
from mmjax.report import runs
from mmjax.training import train

WORKDIR = flags.DEFINE_string("workdir", None, "a run of train.py", required=True)
SPLIT = flags.DEFINE_enum("split", "test", ["valid", "test"], "which split to rank")
PROTOCOL = flags.DEFINE_string(
    "protocol", "", "strict | mmrec | elliot; the run's own if not given"
)
THRESHOLD = flags.DEFINE_float("threshold", None, "ratings below it are not relevant")
CUTOFFS = flags.DEFINE_list("cutoffs", [], "list lengths; the run's if empty")
JSON = flags.DEFINE_string("json", "", "also write the metrics to this file")


def main() -> None:
    workdir = storage.path(WORKDIR.value)
    if not files.exists(workdir / "config.json"):
        raise InputError(f"--workdir={workdir} is no run of train.py (it has no config.json)")
    for cutoff in CUTOFFS.value:
        if not cutoff.isdecimal():
            raise InputError(f"--cutoffs: {cutoff!r} is no list length; give e.g. --cutoffs=10,20")
    change = {
        "protocol": PROTOCOL.value,
        "threshold": THRESHOLD.value,
        "cutoffs": [int(k) for k in CUTOFFS.value],
    }
    change = {key: value for key, value in change.items() if value not in ("", None, [])}
    metrics = train.evaluate(workdir, SPLIT.value, change)
    print(runs.listing(metrics.rounded()))
    if JSON.value and distributed.is_primary():
        files.write_json(JSON.value, metrics.rounded())
        print(f"wrote {JSON.value}")


if __name__ == "__main__":
    run(main, processes="joined")
