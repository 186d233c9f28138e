"""Format a sweep's tables as Markdown, CSV and LaTeX.

All hold the same numbers; each format has its own escapes.
"""

import csv
import io
import math
from collections.abc import Sequence
from typing import NamedTuple

from mmjax.report.sweep.stats import ALPHA, Comparison, Summary, valid
from mmjax.report.sweep.study import Cell, Study
from mmjax.sweep.space import Point

# (kind of comparison, the cell is better) -> mark
MARKS = {
    ("reference", True): "↑",
    ("reference", False): "↓",
    ("baseline", True): "⇑",
    ("baseline", False): "⇓",
}
ARROWS = {"↑": r"\uparrow", "↓": r"\downarrow", "⇑": r"\Uparrow", "⇓": r"\Downarrow"}
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
LATEX |= {char: "\\" + char for char in "&%$#_{}"}
COLUMNS: tuple[str, ...] = ("kind", "cell", "dataset", "split", "metric", "seed", "value")
COLUMNS += ("sd", "low", "high", "against", "d_z", "p", "p_holm", "best_epoch", "trial", "point")


class Entry(NamedTuple):
    """One metric of one cell."""

    text: str  # "0.2463 ± 0.0021"
    interval: str  # "0.2310 – 0.2620"
    marks: str
    best: bool  # of its dataset's cells


class Row(NamedTuple):
    """Row of the main table: one cell."""

    cell: Cell
    group: str
    level: str
    seeds: int
    valid: str
    entries: list[Entry]
    point: str
    epochs: str


def rows(
    study: Study, found: dict[tuple[str, str], Summary], compared: Sequence[Comparison]
) -> list[Row]:
    """Build the main table, a row for each tested cell."""
    table = []
    for cell in study.tested:
        entries = []
        for metric in study.metrics:
            same = [found[c.name, metric].mean for c in study.tested if c.block == cell.block]
            summary = found[cell.name, metric]
            marks = "".join(
                MARKS[test.kind, test.difference > 0]
                for test in compared
                if test.cell == cell.name and test.metric == metric and test.significant
            )
            interval = (
                f"{number(summary.low)} – {number(summary.high)}"
                if summary.low == summary.low
                else ""
            )
            best = summary.mean == max(same) and len(same) > 1
            entries.append(Entry(spread(summary.mean, summary.sd), interval, marks, best))
        epochs = [run.line["best_epoch"] for run in cell.runs]
        best_epochs = (
            ", ".join(map(str, epochs)) if len(epochs) < 4 else f"{min(epochs)}–{max(epochs)}"
        )
        level = f"{cell.level} (reference)" if cell.name == cell.reference else cell.level
        values = [run.line["valid"] for run in cell.runs]
        table.append(
            Row(
                cell,
                cell.group,
                level,
                len(cell.runs),
                spread(valid(cell), deviation(values)),
                entries,
                point(cell.point or {}),
                best_epochs,
            )
        )
    return table


def head(study: Study) -> list[str]:
    """Return the titles of the columns that hold no metrics.

    They are model, level, seeds and validation.
    """
    metrics = {run.results["config"]["metric"] for run in study.runs}
    factors = {f for cell in study.cells for f, v in cell.levels.items() if v == cell.level}
    level = factors.pop() if len(factors) == 1 else "level"
    return ["model", level, "seeds", f"valid {metrics.pop()}" if len(metrics) == 1 else "valid"]


def legend(study: Study, compared: Sequence[Comparison]) -> str:
    """Explain the numbers and marks of the main table."""
    text = (
        "Test split; mean ± standard deviation over seeds, and the 95 % bootstrap interval (BCa) "
        "of the mean over users, each averaged over seeds. Bold: the highest mean."
    )
    if not compared:
        return text
    text += " ↑ or ↓: above or below the reference level of the same model"
    names = list(dict.fromkeys(test.against for test in compared if test.kind == "baseline"))
    if names:
        text += f"; ⇑ or ⇓: above or below the best without features ({', '.join(names)}, chosen "
        text += "on validation)"
    return text + (
        f"; at p < {ALPHA:g} of the paired t-test over users, adjusted by Holm for all "
        f"{len(compared)} comparisons of the table. Seeds are averaged, so p speaks of other "
        "users, not of other seeds."
    )


def markdown(study: Study, table: Sequence[Row], compared: Sequence[Comparison]) -> str:
    """Return the main table and all tests as Markdown."""
    titles = head(study)
    for metric in study.metrics:
        titles += [metric, "95 %"]
    lines = [_line([*map(md, titles), "point", "epoch"])]
    lines.append(_line(["---", "---", *["---:"] * (len(titles) - 2), "---", "---:"]))
    for row in table:
        cells = [md(row.group), md(row.level), str(row.seeds), row.valid]
        for entry in row.entries:
            bold = f"**{entry.text}**" if entry.best else entry.text
            cells += [f"{bold} {entry.marks}".strip(), entry.interval]
        lines.append(_line([*cells, md(row.point), row.epochs]))
    lines += ["", md(legend(study, compared)), ""]
    if compared:
        names = ["cell", "against", "metric", "difference", "d_z", "p", "p (Holm)"]
        tests = [[test.cell, test.against, test.metric, *figures(test)] for test in compared]
        lines.append(grid(names, tests, left=3))
    return "\n".join(lines) + "\n"


def as_csv(
    study: Study, found: dict[tuple[str, str], Summary], compared: Sequence[Comparison]
) -> str:
    """Return all numbers as CSV in long form.

    `kind` is "seed" (a cell's metric for a seed), "summary" (the main table: over seeds, with the
    interval) or "comparison" (`value` is the mean difference to `against`).
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    of_dataset = {cell.name: cell.runs[0].results["dataset"] for cell in study.tested}
    for cell in study.tested:
        base = {"kind": "seed", "cell": cell.name, "dataset": of_dataset[cell.name]}
        base["point"] = point(cell.point or {})
        for run in cell.runs:
            fields = {key: run.line[key] for key in ("seed", "trial", "best_epoch")}
            for split in ("valid", "test"):
                for metric, value in run.results[split].items():
                    row = {"split": split, "metric": metric, "value": value}
                    writer.writerow(base | fields | row)
    for (name, metric), summary in found.items():
        row = {"kind": "summary", "cell": name, "dataset": of_dataset[name], "split": "test"}
        values = {
            "value": summary.mean,
            "sd": summary.sd,
            "low": summary.low,
            "high": summary.high,
        }
        numbers = {key: f"{value:.6f}" for key, value in values.items() if not math.isnan(value)}
        writer.writerow(row | {"metric": metric} | numbers)
    for test in compared:
        row = {"kind": "comparison", "cell": test.cell, "against": test.against, "split": "test"}
        row |= {"dataset": of_dataset[test.cell], "metric": test.metric}
        numbers = {"value": f"{test.difference:.6f}", "d_z": f"{test.d_z:.4f}"}
        writer.writerow(row | numbers | {"p": f"{test.p:.6g}", "p_holm": f"{test.adjusted:.6g}"})
    return out.getvalue()


def latex(study: Study, table: Sequence[Row], compared: Sequence[Comparison], command: str) -> str:
    r"""Return the main table as LaTeX for \usepackage{booktabs}.

    In each column the best of a dataset's cells is bold.
    """
    names = [tex(name) for name in head(study)]
    count = len(study.metrics)
    rules = " ".join(rf"\cmidrule(lr){{{5 + 2 * i}-{6 + 2 * i}}}" for i in range(count))
    over = " & ".join(rf"\multicolumn{{2}}{{c}}{{{tex(metric)}}}" for metric in study.metrics)
    lines = [
        f"% {' '.join(command.split())}",
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering\small",
        rf"\caption{{{tex(legend(study, compared))}}}",
        rf"\begin{{tabular}}{{llrr{'rr' * count}}}",
        r"\toprule",
        rf" & & & & {over} \\",
        rules,
        " & ".join([*names, *[r"mean & 95\,\%"] * count]) + r" \\",
    ]
    before = None
    for row in table:
        lines += [r"\midrule"] if row.group != before else []
        cells = [tex(row.group), tex(row.level), str(row.seeds), tex(row.valid)]
        for entry in row.entries:
            value = rf"\textbf{{{tex(entry.text)}}}" if entry.best else tex(entry.text)
            marks = f"$^{{{''.join(ARROWS[mark] for mark in entry.marks)}}}$"
            cells += [value + marks if entry.marks else value, tex(entry.interval)]
        lines.append(" & ".join(cells) + r" \\")
        before = row.group
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def tex(text: str) -> str:
    """Escape text for LaTeX, the signs of the tables included."""
    escaped = "".join(LATEX.get(char, char) for char in text).replace(" ± ", r" $\pm$ ")
    for mark, arrow in ARROWS.items():
        escaped = escaped.replace(mark, f"${arrow}$")
    return escaped.replace("–", "--")


def number(value: float) -> str:
    """Format a number with four decimals; a dash for NaN.

    From 10 on it has one decimal (ARP counts ratings).
    """
    if math.isnan(value):
        return "–"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"


def signed(value: float, digits: int = 4) -> str:
    """Format a difference with its sign.

    The minus is as wide as the plus. The value is ∞ where all users differ alike.
    """
    value = round(value, digits) + 0.0  # no minus before 0.00
    return f"{value:+.{digits}f}".replace("-", "−").replace("inf", "∞")


def spread(mean: float, sd: float) -> str:
    return number(mean) if math.isnan(sd) else f"{number(mean)} ± {number(sd)}"


def p_text(p: float) -> str:
    if p > 0.9995:
        return "p = 1"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def point(values: Point) -> str:
    """Format a point as "lr=0.01 model.l_w=0.1"."""
    return " ".join(f"{key}={value}" for key, value in values.items())


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation of a sample; NaN for one value."""
    if len(values) < 2:
        return math.nan
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def figures(test: Comparison) -> list[str]:
    """Format difference, d_z, p and Holm's p of a test."""
    ps = [p_text(p).removeprefix("p = ").removeprefix("p ") for p in (test.p, test.adjusted)]
    return [signed(test.difference), signed(test.d_z, 2), *ps]


def grid(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return a Markdown table whose first `left` columns are text."""
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    lines = [[md(cell) for cell in head], rule, *([md(cell) for cell in row] for row in rows)]
    return "\n".join(map(_line, lines)) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def md(text: str) -> str:
    """Escape text for a Markdown table.

    No character of it is read as markup.
    """
    text = " ".join(text.split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join("\\" + char if char in "\\`*_[]|~#" else char for char in text)
