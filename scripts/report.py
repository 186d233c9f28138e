"""Compares finished runs: prints the table and writes table.md, table.csv and table.png.

python scripts/report.py RUN RUN ... --out=DIR
"""

from pathlib import Path

from _app import arguments, run
from absl import flags

from mmjax import report
from mmjax.errors import InputError

OUT = flags.DEFINE_string("out", "", "folder for the files; the first run's parent when not given")
COLUMNS = flags.DEFINE_list("columns", [], "metrics of the table; the usual ones when not given")


def main() -> None:
    workdirs = [Path(name) for name in arguments()]
    if not workdirs:
        raise InputError("no run is named; call report.py RUN RUN ...")
    runs = report.load(workdirs)
    print(report.markdown(runs, COLUMNS.value))
    paths = report.write(runs, Path(OUT.value or workdirs[0].parent), COLUMNS.value)
    print("wrote", ", ".join(str(path) for path in paths))


if __name__ == "__main__":
    run(main, words=True)
