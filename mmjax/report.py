"""Results for people: one run's card, and the comparison of several as Markdown, CSV and a PNG."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

from mmjax import files
from mmjax.errors import InputError

Results = dict[str, Any]
COLUMNS = ("recall@20", "ndcg@20", "hr@20", "map@20", "coverage@20", "gini@20", "arp@20")
INK, ACCENT, GRID = "#1f2937", "#2563eb", "#d1d5db"


def load(workdirs: Sequence[Path]) -> list[Results]:
    """Reads the results.json of each run.

    Raises:
      InputError: a run has none; two runs are on different data or protocols, which no table may
        mix.
    """
    runs = []
    for workdir in workdirs:
        if not (Path(workdir) / "results.json").exists():
            raise InputError(f"{workdir} has no results.json; train it to the end first")
        runs.append(files.read_json(Path(workdir) / "results.json"))
    for what, read in (
        ("data", lambda run: run["data"]["interaction_hash"]),
        ("protocol", lambda run: (run["config"]["protocol"], run["config"]["threshold"])),
    ):
        if len({str(read(run)) for run in runs}) > 1:
            raise InputError(f"these runs differ in their {what}; report them apart")
    return runs


def card(run: Results, columns: Sequence[str] = COLUMNS) -> str:
    """A run in a few lines for a terminal: metrics of both splits, epoch, time and memory."""
    shown = [c for c in columns if c in run["test"]]
    rows = [["", *shown]]
    rows += [[split, *(_number(run[split][c]) for c in shown)] for split in ("valid", "test")]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    timing = run["timing"]
    epoch = "" if timing["epoch_s"] is None else f"{timing['epoch_s']:.3f} s/epoch, "
    head = f"{run['recommender']} on {run['dataset']}, protocol {run['config']['protocol']}, "
    head += f"seed {run['seed']}, best epoch {run['best_epoch']} of {run['epochs']}"
    tail = f"{epoch}{timing['eval_s']:.3f} s/evaluation, compile {timing['compile_s']:.1f} s, "
    tail += f"total {timing['total_s']:.1f} s, peak {run['memory']['peak_rss_mb']:.0f} MB"
    return "\n".join([head, *lines, tail])


def listing(metrics: dict[str, float]) -> str:
    """Metrics as a grid for a terminal: a row a metric, a column a cutoff."""
    names = list(dict.fromkeys(name.split("@")[0] for name in metrics))
    cutoffs = sorted({int(name.split("@")[1]) for name in metrics})
    lines = [" " * 10 + "".join(f"@{k}".rjust(10) for k in cutoffs)]
    for name in names:
        values = (_number(metrics[f"{name}@{k}"]).rjust(10) for k in cutoffs)
        lines.append(name.ljust(10) + "".join(values))
    return "\n".join(lines)


def rows(runs: Sequence[Results], columns: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the comparison table, runs in the order given."""
    shown = [c for c in columns if all(c in run["test"] for run in runs)]
    if not shown:
        raise InputError(f"the runs have none of the columns {', '.join(columns)}")
    head = ["recommender", "seed", "epoch", *shown, "valid recall@20", "s/epoch", "total s"]
    body = []
    for run in runs:
        timing = run["timing"]
        body.append(
            [
                run["recommender"].rsplit(".", 1)[-1],
                str(run["seed"]),
                str(run["best_epoch"]),
                *(_number(run["test"][c]) for c in shown),
                _number(run["valid"].get("recall@20", float("nan"))),
                "" if timing["epoch_s"] is None else f"{timing['epoch_s']:.3f}",
                f"{timing['total_s']:.1f}",
            ]
        )
    return head, body


def markdown(runs: Sequence[Results], columns: Sequence[str] = COLUMNS) -> str:
    """The comparison as a Markdown table, numbers to the right, and how it was made below it."""
    head, body = rows(runs, columns)
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0])]
        padded += [c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True)]
        return "| " + " | ".join(padded) + " |"

    rule = [":" + "-" * (widths[0] - 1), *("-" * (w - 1) + ":" for w in widths[1:])]
    run = runs[0]
    made = ", ".join(f"{name} {version}" for name, version in sorted(run["versions"].items()))
    protocol, threshold = run["config"]["protocol"], run["config"]["threshold"]
    note = f"Test split of {run['dataset']}, protocol {protocol}"
    note += f" with threshold {threshold:g}" if threshold else ""
    note += f", epoch chosen on valid {run['config']['metric']}. {run['device']}; {made}."
    return "\n".join([line(head), line(rule), *map(line, body), "", note, ""])


def as_csv(runs: Sequence[Results]) -> str:
    """All metrics of both splits, one row a run."""
    out = io.StringIO()
    names = [f"{s}/{k}" for s in ("valid", "test") for k in runs[0][s]]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["dataset", "recommender", "protocol", "seed", "best_epoch", "epochs", *names])
    for run in runs:
        values = [run[name.split("/")[0]].get(name.split("/")[1], "") for name in names]
        fields = [run["dataset"], run["recommender"], run["config"]["protocol"], run["seed"]]
        writer.writerow([*fields, run["best_epoch"], run["epochs"], *values])
    return out.getvalue()


def picture(runs: Sequence[Results], path: Path, metrics: Sequence[str] = COLUMNS[:2]) -> None:
    """Bars of the first metrics, a panel each, a row a run, values written at the bars."""
    labels = [run["recommender"].rsplit(".", 1)[-1] for run in runs]
    if len(set(labels)) < len(labels):
        labels = [f"{label} (seed {run['seed']})" for label, run in zip(labels, runs, strict=True)]
    height = 1.1 + 0.42 * len(runs)
    style = {"font.size": 11, "text.color": INK, "axes.labelcolor": INK}
    with plt.rc_context(style):
        figure, axes = plt.subplots(
            1, len(metrics), figsize=(4.6 * len(metrics), height), sharey=True, squeeze=False
        )
        for axis, metric in zip(axes[0], metrics, strict=True):
            values = [run["test"][metric] for run in runs]
            bars = axis.barh(labels, values, color=ACCENT, height=0.62)
            axis.bar_label(bars, [_number(v) for v in values], padding=4, color=INK)
            axis.set_xlim(0, max([*values, 1e-9]) * 1.22)
            axis.set_title(metric, loc="left", fontsize=12, color=INK)
            axis.xaxis.grid(True, color=GRID)
            axis.set_axisbelow(True)
            axis.tick_params(length=0, colors=INK)
            axis.spines[:].set_visible(False)
        axes[0][0].invert_yaxis()
        protocol = runs[0]["config"]["protocol"]
        figure.suptitle(
            f"{runs[0]['dataset']}: test, protocol {protocol}", x=0.01, ha="left", fontsize=12
        )
        figure.tight_layout()
        figure.savefig(path, dpi=150, facecolor="white")
        plt.close(figure)


def write(runs: Sequence[Results], out: Path, columns: Sequence[str] = COLUMNS) -> list[Path]:
    """Writes table.md, table.csv and table.png into `out`; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / "table.md", out / "table.csv", out / "table.png"]
    files.write_bytes(paths[0], markdown(runs, columns).encode())
    files.write_bytes(paths[1], as_csv(runs).encode())
    shown = [c for c in columns if all(c in run["test"] for run in runs)]
    aside = out / ".table.partial.png"
    picture(runs, aside, shown[:2])
    aside.replace(paths[2])
    return paths


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"
