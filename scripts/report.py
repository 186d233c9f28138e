"""Compare runs, report a sweep, or show models' descriptions.

python scripts/report.py RUN RUN ... --out=DIR        # table.md, table.csv and table.png
python scripts/report.py --sweep=DIR [--out=DIR] [--reference=LEVEL]   # report.html, .md, ...
python scripts/report.py --descriptions=DIR,DIR --dataset=DIR --out=DIR   # descriptions.html, .png
"""

import shlex

from _app import arguments, run
from absl import flags

from mmjax.core import storage
from mmjax.core.errors import InputError
from mmjax.data.dataset import load
from mmjax.report import runs as report
from mmjax.report.descriptions import figure, gallery
from mmjax.report.sweep import page

OUT = flags.DEFINE_string("out", "", "folder for the files; by the first run, or the sweep's own")
SWEEP = flags.DEFINE_string("sweep", "", "a folder that sweep.py works in, finished or not")
REFERENCE = flags.DEFINE_string(
    "reference", "", "of --sweep: the level that others are tested against; real, else the first"
)
COLUMNS = flags.DEFINE_list("columns", [], "metrics of the table; the usual ones when not given")
DESCRIPTIONS = flags.DEFINE_list("descriptions", [], "folders that describe.py made, one a model")
DATASET = flags.DEFINE_string("dataset", "", "of --descriptions: the prepared folder")
ITEMS = flags.DEFINE_integer("items", 60, "of --descriptions: how many are shown", 0)
SEED = flags.DEFINE_integer("seed", 0, "of --descriptions: of which are shown")


def main() -> None:
    if DESCRIPTIONS.value:
        show_descriptions()
    if SWEEP.value:
        report_sweep()
    if arguments() or not (DESCRIPTIONS.value or SWEEP.value):
        compare_runs()


def show_descriptions() -> None:
    if not DATASET.value:
        raise InputError("--dataset is missing: whose items the descriptions are of")
    described = gallery.load(DESCRIPTIONS.value)
    out = OUT.value or DESCRIPTIONS.value[0]
    shown = {"items": ITEMS.value, "seed": SEED.value}
    dataset = load(DATASET.value)
    print("wrote", gallery.write(described, dataset, out, **shown))
    if any(dataset.images):
        print("wrote", figure.write(described[0], dataset, out, seed=SEED.value))


def report_sweep() -> None:
    values = {"sweep": SWEEP.value, "out": OUT.value, "reference": REFERENCE.value}
    words = [f"--{name}={shlex.quote(value)}" for name, value in values.items() if value]
    paths = page.write(
        storage.local(SWEEP.value),
        OUT.value or SWEEP.value,
        reference=REFERENCE.value,
        command=" ".join(["python scripts/report.py", *words]),
    )
    print("wrote", ", ".join(str(path) for path in paths))


def compare_runs() -> None:
    workdirs = [storage.path(name) for name in arguments()]
    if not workdirs:
        raise InputError("no run is named; call report.py RUN RUN ...")
    runs = report.load(workdirs)
    print(report.markdown(runs, COLUMNS.value))
    paths = report.write(runs, OUT.value or workdirs[0].parent, COLUMNS.value)
    print("wrote", ", ".join(str(path) for path in paths))


if __name__ == "__main__":
    run(main, words=True)
