"""Format results of runs for terminals, tables and pictures.

One run is shown as a card; several are compared as Markdown, CSV and a PNG.
"""

import csv
import io
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

from mmjax.core import files, storage
from mmjax.core.errors import InputError
from mmjax.core.names import suggestion

Results = dict[str, Any]
METRICS = ("recall", "ndcg", "hr", "map", "coverage", "gini", "arp")
KEYS: tuple[str, ...] = ("dataset", "recommender", "config", "seed", "epochs", "best_epoch")
KEYS += ("valid", "test", "timing", "memory", "versions", "device", "data")
INK, QUIET, BEST, REST = "#1f2937", "#6b7280", "#2563eb", "#a9c1f5"


def load(workdirs: Sequence[str | Path]) -> list[Results]:
    """Read the results.json of each run.

    Raises:
      InputError: a run has none, or a damaged one; two runs are on different data or protocols,
        which no table may mix.
    """
    runs = []
    for path in (storage.path(workdir) / "results.json" for workdir in workdirs):
        if not files.exists(path):
            raise InputError(f"{path.parent} has no results.json; train it to the end first")
        run = files.read_json(path)
        if isinstance(run, dict):
            run["folder"] = path.parent.name
        lacking = [key for key in KEYS if not isinstance(run, dict) or key not in run]
        if lacking:
            raise InputError(f"{path} has no {lacking[0]!r}; it is not what train.py writes")
        runs.append(run)
    for field, value_of in (
        ("data", lambda run: run["data"]["interaction_hash"]),
        ("protocol", lambda run: (run["config"]["protocol"], run["config"]["threshold"])),
    ):
        if len({str(value_of(run)) for run in runs}) > 1:
            raise InputError(f"these runs differ in their {field}; report them apart")
    return runs


def chosen(runs: Sequence[Results], columns: Sequence[str] = ()) -> list[str]:
    """Return the metrics to show.

    They are `columns`, or by default the usual ones at 20 or, without it, at the longest cutoff.

    Raises:
      InputError: not every run has a column (the sentence suggests one), or the runs share no
        cutoff.
    """
    common = [name for name in runs[0]["test"] if all(name in run["test"] for run in runs)]
    if columns:
        for name in columns:
            if name not in common:
                raise InputError(f"not every run has {name!r}{suggestion(name, common)}")
        return list(columns)
    cutoffs = {int(name.split("@")[1]) for name in common}
    if not cutoffs:
        raise InputError("the runs share no cutoff; rank them again with evaluate.py --cutoffs")
    best = 20 if 20 in cutoffs else max(cutoffs)
    return [f"{name}@{best}" for name in METRICS if f"{name}@{best}" in common]


def card(run: Results) -> str:
    """Format a run in a few lines for a terminal.

    They hold the metrics of both splits, epoch, time and memory.
    """
    shown = chosen([run])
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
    """Format metrics as a grid for a terminal.

    One row a metric, one column a cutoff.
    """
    names = list(dict.fromkeys(name.split("@")[0] for name in metrics))
    cutoffs = sorted({int(name.split("@")[1]) for name in metrics})
    lines = [" " * 10 + "".join(f"@{k}".rjust(10) for k in cutoffs)]
    for name in names:
        values = (_number(metrics[f"{name}@{k}"]).rjust(10) for k in cutoffs)
        lines.append(name.ljust(10) + "".join(values))
    return "\n".join(lines)


def by_seed(runs: Sequence[Results]) -> list[list[Results]]:
    """Group runs that differ only in their seed, in their order."""
    groups: dict[str, list[Results]] = {}
    for run in runs:
        config = {key: value for key, value in run["config"].items() if key != "seed"}
        groups.setdefault(json.dumps(config, sort_keys=True), []).append(run)
    return list(groups.values())


def labels(groups: Sequence[Sequence[Results]]) -> list[str]:
    """Return a label for each group of runs.

    It is the recommender's name, with the folder where several groups have one name.
    """
    names = [same[0]["recommender"].rsplit(".", 1)[-1] for same in groups]
    return [
        f"{name} ({same[0]['folder']})" if names.count(name) > 1 else name
        for name, same in zip(names, groups, strict=True)
    ]


def rows(runs: Sequence[Results], columns: Sequence[str] = ()) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the comparison table.

    One row a config, mean ± standard deviation over its seeds.
    """
    shown = chosen(runs, columns)
    metric = runs[0]["config"]["metric"]
    head = ["recommender", "seed", "epoch", *shown, f"valid {metric}", "s/epoch", "total s"]
    body = []
    groups = by_seed(runs)
    for name, same in zip(labels(groups), groups, strict=True):
        valid = [run["valid"][metric] for run in same if metric in run["valid"]]
        epochs = [e for run in same if (e := run["timing"]["epoch_s"]) is not None]
        body.append(
            [
                name,
                str(same[0]["seed"]) if len(same) == 1 else f"{len(same)} seeds",
                f"{statistics.median(run['best_epoch'] for run in same):g}",
                *(
                    _spread([r["test"][c] for r in same], [r["test"][c] for r in runs])
                    for c in shown
                ),
                _spread(valid) if valid else "",
                f"{statistics.median(epochs):.3f}" if epochs else "",
                f"{statistics.median(run['timing']['total_s'] for run in same):.1f}",
            ]
        )
    return head, body


def markdown(runs: Sequence[Results], columns: Sequence[str] = ()) -> str:
    """Return the comparison as a Markdown table with a note.

    Numbers stand to the right. The note says how the table was made.
    """
    head, body = rows(runs, columns)
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0])]
        padded += [c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True)]
        return "| " + " | ".join(padded) + " |"

    rule = [":" + "-" * (widths[0] - 1), *("-" * (w - 1) + ":" for w in widths[1:])]
    run = runs[0]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(run["versions"].items()))
    protocol, threshold = run["config"]["protocol"], run["config"]["threshold"]
    note = f"Test split of {run['dataset']}, protocol {protocol}"
    note += f" with threshold {threshold:g}" if threshold else ""
    note += f", epoch chosen on valid {run['config']['metric']}"
    note += "; mean ± sd over seeds" if len(body) < len(runs) else ""
    note += f". {run['device']}; {versions}."
    return "\n".join([line(head), line(rule), *map(line, body), "", note, ""])


def as_csv(runs: Sequence[Results]) -> str:
    """Return all metrics of both splits, one row a run."""
    out = io.StringIO()
    names = [f"{s}/{k}" for s in ("valid", "test") for k in runs[0][s]]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["dataset", "recommender", "protocol", "seed", "best_epoch", "epochs", *names])
    for run in runs:
        values = [run[name.split("/")[0]].get(name.split("/")[1], "") for name in names]
        fields = [run["dataset"], run["recommender"], run["config"]["protocol"], run["seed"]]
        writer.writerow([*fields, run["best_epoch"], run["epochs"], *values])
    return out.getvalue()


def picture(runs: Sequence[Results], path: Path, columns: Sequence[str] = ()) -> None:
    """Draw bars of the first two metrics into a PNG.

    One panel a metric, one row a config; the best bar is darker.
    """
    groups = by_seed(runs)
    metrics, positions = chosen(runs, columns)[:2], range(len(groups))
    size = (1.2 + 4.0 * len(metrics), 1.0 + 0.4 * len(groups))
    style: dict[Any, Any] = {"font.size": 11, "text.color": INK, "axes.labelcolor": INK}
    with plt.rc_context(style):
        figure, axes = plt.subplots(
            1, len(metrics), figsize=size, sharey=True, squeeze=False, layout="constrained"
        )
        layout: Any = figure.get_layout_engine()
        layout.set(w_pad=0.12, h_pad=0.1)
        for axis, metric in zip(axes[0], metrics, strict=True):
            group_values = [[run["test"][metric] for run in same] for same in groups]
            values = [statistics.mean(each) for each in group_values]
            colors = [BEST if value == max(values) else REST for value in values]
            bars = axis.barh(positions, values, color=colors, height=0.66)
            # Every bar is labelled with its number, so an axis of numbers would only repeat them.
            axis.bar_label(bars, [_spread(each, values) for each in group_values], padding=5)
            room = 1.25 if len(groups) == len(runs) else 1.6
            axis.set_xlim(0, max([*values, 1e-9]) * room)
            axis.set_xticks([])
            axis.set_yticks(positions, labels(groups))
            axis.set_title(metric, loc="left", fontsize=11, fontweight="bold", pad=8)
            axis.tick_params(length=0, colors=INK)
            axis.spines[:].set_visible(False)
        axes[0][0].invert_yaxis()
        caption = f"{runs[0]['dataset']}, test split, protocol {runs[0]['config']['protocol']}"
        figure.supxlabel(caption, fontsize=9, color=QUIET, x=0.01, ha="left")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150, facecolor="white")
        plt.close(figure)
    files.write_bytes(path, buffer.getvalue())


def write(runs: Sequence[Results], out: str | Path, columns: Sequence[str] = ()) -> list[Path]:
    """Write table.md, table.csv and table.png into `out`.

    Returns:
      Their paths.
    """
    paths = [storage.path(out) / f"table.{kind}" for kind in ("md", "csv", "png")]
    files.write_bytes(paths[0], markdown(runs, columns).encode())
    files.write_bytes(paths[1], as_csv(runs).encode())
    picture(runs, paths[2], columns)
    return paths


def _spread(values: Sequence[float], beside: Sequence[float] = ()) -> str:
    """Format a number, or mean ± standard deviation of several."""
    mean = _number(statistics.mean(values), beside)
    return mean if len(values) == 1 else f"{mean} ± {_number(statistics.stdev(values), beside)}"


def _number(value: float, beside: Sequence[float] = ()) -> str:
    """Format a number with four decimals, or one if large.

    It is large where it or a number of its column is at least 10 (ARP counts ratings).
    """
    return f"{value:.4f}" if max(map(abs, [value, *beside])) < 10 else f"{value:.1f}"
