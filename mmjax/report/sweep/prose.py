"""Write a sweep's report in words, and report.md.

The words are its head, readings of the tests, costs, and what is missing.
"""

import statistics
from collections.abc import Sequence

from mmjax.report.sweep.stats import Comparison, Summary
from mmjax.report.sweep.study import Cell, Study
from mmjax.report.sweep.tables import Row, grid, md, number, p_text, point, signed
from mmjax.report.sweep.tables import markdown as main_table

COSTS = (
    "A program trains several trials at once: each is charged its share of the program's time, "
    "compiling and validation included. Peak memory is the host's, of the process that tested the "
    "cell up to then, so it counts what that process did before. Energy is not measured."
)


def about(study: Study) -> dict[str, str]:
    """Return the head of a report: the text of each entry."""
    runs = [run.results for run in study.runs]
    done = sum(len(cell.done) for cell in study.cells)
    failed = sum(len(cell.failed) for cell in study.cells)
    planned = max(study.planned, done + failed)
    versions = {f"{k} {v}" for run in runs for k, v in run["versions"].items()}
    loops = {(run["config"]["protocol"], run["config"]["threshold"]) for run in runs}
    data = {
        (r["dataset"], *(r["data"][f"{k}_hash"] for k in ("interaction", "item"))) for r in runs
    }
    seeds, left_out = study.sweep["seeds"], len(study.left_out)
    trials = f"{done} of {planned} done, {failed} failed, {len(runs)} tested"
    if len(study.tested) < len(study.cells):
        trials += f" (unfinished: {len(study.tested)} of {len(study.cells)} cells are tested)"
    elif done + failed < planned:
        trials += " (unfinished)"
    return {
        "sweep": str(study.folder),
        "dataset": "; ".join(
            f"{name}, interactions {users}, items {items}" for name, users, items in sorted(data)
        ),
        "protocol": "; ".join(
            name + (f", threshold {threshold:g}" if threshold else "")
            for name, threshold in sorted(loops)
        ),
        "search": f"{study.sweep['search']} on validation, seeds {', '.join(map(str, seeds))}",
        "trials": trials,
        "cells left out": f"{left_out} for lack of a store, named below" if left_out else "none",
        "device": ", ".join(sorted({run["device"] for run in runs})),
        "versions": ", ".join(sorted(versions)),
    }


def readings(
    study: Study, found: dict[tuple[str, str], Summary], compared: Sequence[Comparison], metric: str
) -> list[tuple[str, str]]:
    """Put a metric's tests into words, one sentence a group.

    Returns:
      (group, sentence) for each group that has such tests.
    """
    by_group: dict[str, dict[str, list[str]]] = {}  # group -> verdict -> rivals
    start: dict[str, str] = {}
    for test in sorted(compared, key=lambda test: test.kind, reverse=True):  # controls first
        cell, other = study.cell(test.cell), study.cell(test.against)
        if test.metric != metric or (test.kind == "baseline" and cell.reference != cell.name):
            continue  # a control against no features is in the table of all comparisons
        # Both kinds of sentence begin with the reference, which the sweep asks about.
        first, second, sign = (other, cell, -1) if test.kind == "reference" else (cell, other, 1)
        a, b = found[first.name, metric].mean, found[second.name, metric].mean
        change = f"{100 * (a - b) / b:+.1f} %, ".replace("-", "−") if b else ""
        verdict = "no difference can be told"
        if test.significant:
            verdict = f"{first.level} is {'better' if a > b else 'worse'}"
        name = second.level if test.kind == "reference" else f"{second.name} without features"
        start[cell.group] = f"{first.level} {number(a)} "
        by_group.setdefault(cell.group, {}).setdefault(verdict, []).append(
            f"{name} {number(b)} ({change}{p_text(test.adjusted)}, "
            f"d_z {signed(sign * test.d_z, 2)})"
        )
    return [
        (
            group,
            start[group]
            + "; ".join(
                f"against {', '.join(names)}: {outcome}" for outcome, names in verdicts.items()
            )
            + ".",
        )
        for group, verdicts in by_group.items()
    ]


def costs(study: Study) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of time and memory, a row a cell."""
    head = ["cell", "trials", "s / trial", "s in all", "s / epoch", "peak MB", "device"]
    return head, [_cost(cell) for cell in study.cells if cell.done]


def _cost(cell: Cell) -> list[str]:
    # A program's time is of all its trials: each is charged its share.
    shares = [line["timing"]["total_s"] / line["of"] for line in cell.done]
    epochs = [
        line["timing"]["epoch_s"] / line["of"]
        for line in cell.done
        if line["timing"]["epoch_s"] is not None
    ]
    peaks = [run.results["memory"]["peak_rss_mb"] for run in cell.runs]
    devices = sorted({run.results["device"] for run in cell.runs})
    return [
        cell.name,
        str(len(cell.done)),
        f"{statistics.mean(shares):.2f}",
        f"{sum(shares):.1f}",
        f"{statistics.median(epochs):.4f}" if epochs else "–",
        f"{max(peaks):,.0f}" if peaks else "–",
        ", ".join(devices) or "–",
    ]


def missing(study: Study) -> dict[str, list[str]]:
    """Return the names of cells that the tables lack, by reason."""
    waiting = [cell.name for cell in study.cells if not cell.runs]
    few = [
        f"{cell.name} ({len(cell.runs)} of {len(study.sweep['seeds'])})"
        for cell in study.tested
        if len(cell.runs) < len(study.sweep["seeds"])
    ]
    reasons = {
        "Left out, they lacked a store": study.left_out,
        "Not tested so far": waiting,
        "Tested with fewer seeds": few,
    }
    return {reason: names for reason, names in reasons.items() if names}


def markdown(
    study: Study,
    found: dict[tuple[str, str], Summary],
    compared: Sequence[Comparison],
    rows: Sequence[Row],
    command: str,
) -> str:
    """Return the complete text of report.md.

    It has the head, the main table, tests, readings, costs, and what is missing.
    """
    lines = [f"# Sweep {md(study.folder.resolve().name)}", ""]
    lines += [f"- {name}: {md(text)}" for name, text in about(study).items()]
    lines += [f"- made by: {md(command)}", "", main_table(study, rows, compared)]
    for group, text in readings(study, found, compared, study.metrics[0]):
        lines.append(f"- {md(group)}: {md(text)}")
    lines += ["", grid(*costs(study)), md(COSTS), ""]
    for cell in study.cells:
        for line in cell.failed:
            failure = f"{cell.name} {point(line['point'])} seed {line['seed']}: {line['error']}"
            lines.append(f"- failed: {md(failure)}")
    lines += [f"- {reason}: {md(', '.join(names))}" for reason, names in missing(study).items()]
    return "\n".join(lines).rstrip() + "\n"
