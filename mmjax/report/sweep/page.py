"""Write a sweep's report as a static page and as tables.

The page is one HTML file with its style and its figures embedded: it needs no server, no script
and no network, and follows the reader's light or dark mode. Beside it lie the same tables as
Markdown, CSV and LaTeX.
"""

import html
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmjax.core import files, storage
from mmjax.report.sweep import plots, prose, stats, tables
from mmjax.report.sweep.stats import Comparison, Summary
from mmjax.report.sweep.study import Study, read
from mmjax.report.sweep.tables import Row, point

STYLE = """
:root { color-scheme: light dark; --ink: #1f2937; --quiet: #5b6472; --line: #e5e7eb;
  --paper: #ffffff; --bad: #b45309; --c0: #0072b2; --c1: #c2500a; --c2: #00795a; --c3: #a8437f;
  --c4: #7a6200; --c5: #5f6b7a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e7eb; --quiet: #9ca3af; --line: #333b47;
  --paper: #111418; --bad: #fbbf24; --c0: #5ab4f0; --c1: #ff9354; --c2: #35c99b; --c3: #e994c6;
  --c4: #dcc24a; --c5: #aab4c2; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.25rem 4rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .75rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.75rem 0 .6rem; }
p, ul { max-width: 46rem; margin: .5rem 0; overflow-wrap: anywhere; }
ul { padding-left: 1.2rem; }
li { margin: .3rem 0; }
.quiet { color: var(--quiet); font-size: .875rem; }
.made { color: var(--quiet); font-size: .75rem; max-width: none; }
.bad { color: var(--bad); }
code { font: .92em ui-monospace, monospace; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem 1rem;
  margin: 0; }
dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; vertical-align: top; }
th { font-weight: 600; font-size: .8rem; color: var(--quiet); vertical-align: bottom; }
th:first-child, td:first-child { padding-left: 0; text-align: left; position: sticky; left: 0;
  background: var(--paper); }
.left { text-align: left; }
tr.first > * { border-top: 2px solid var(--line); }
td small, th small { display: block; font-weight: 400; font-size: .78rem; color: var(--quiet); }
.said td:last-child { white-space: normal; min-width: 18rem; overflow-wrap: anywhere; }
.mark { display: inline-block; width: 1.7em; text-align: left; padding-left: .2em; }
td small.marked { padding-right: 1.85em; }
.panels { display: grid; gap: 1rem 1.75rem; margin: .75rem 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.panels > svg { display: block; width: 100%; max-width: 27rem; height: auto; overflow: visible; }
.panels svg * { stroke-linejoin: round; }
.keys span { white-space: nowrap; margin-right: 1.1rem; }
"""


def write(folder: Path, out: str | Path, *, reference: str = "", command: str = "") -> list[Path]:
    """Write report.html, report.md, report.csv and report.tex into `out`.

    Args:
      folder: a sweep's workdir.
      out: the folder to write to.
      reference: the reference level, see `study.read`.
      command: the command shown below every table; by default that of scripts/report.py.

    Returns:
      The paths of the four files.

    Raises:
      InputError: `study.read` raises it, or the files cannot be written.
    """
    study = read(folder, reference)
    summaries, compared = stats.summaries(study), stats.compare(study)
    rows = tables.rows(study, summaries, compared)
    command = command or f"python scripts/report.py --sweep={shlex.quote(str(folder))}"
    texts = {
        "html": _page(study, summaries, compared, rows, command),
        "md": prose.markdown(study, summaries, compared, rows, command),
        "csv": tables.as_csv(study, summaries, compared),
        "tex": tables.latex(study, rows, compared, command),
    }
    paths = [storage.path(out) / f"report.{kind}" for kind in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        files.write_bytes(path, text.encode())
    return paths


def _page(
    study: Study,
    found: dict[tuple[str, str], Summary],
    compared: Sequence[Comparison],
    rows: Sequence[Row],
    command: str,
) -> str:
    title = f"Sweep {study.folder.resolve().name}"
    head = prose.about(study) | {"made by": command}
    terms = "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in head.items())
    sections = [
        ("Results", _main(study, rows, compared), "runs/*/per_user.npz"),
        (_question(study), _contrast(study, found, compared), "runs/*/per_user.npz"),
        ("Sensitivity", _sensitivity(study), "ledger.jsonl"),
        ("Learning curves", _curves(study), "packs/*/metrics.jsonl"),
        ("Accuracy, popularity and coverage", _scatter(study), "runs/*/results.json"),
        ("Models over datasets", _ranks(study), "runs/*/per_user.npz"),
        ("All comparisons", _comparisons(study, compared), "runs/*/per_user.npz"),
        ("Time and memory", _costs(study), "ledger.jsonl, runs/*/results.json"),
        ("Failed, left out, not done", _missing(study), "ledger.jsonl, sweep.json"),
    ]
    body = "\n".join(
        f"<section><h2>{_text(name)}</h2>\n{inside}\n"
        f'<p class="made"><code>{_text(command)}</code>, from {_text(source)}</p></section>'
        for name, inside, source in sections
        if inside
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8" />\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1" />\n'
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{_text(title)}</h1>\n<dl>{terms}</dl>\n{body}\n</body>\n</html>\n"
    )


def _main(study: Study, rows: Sequence[Row], compared: Sequence[Comparison]) -> str:
    model, level, seeds, valid = (_text(name) for name in tables.head(study))
    # Every value reserves room for its marks, so that digits are aligned.
    metrics = "".join(f'<th>{_text(m)}<span class="mark"></span></th>' for m in study.metrics)
    head = f"<th>{model}, {level}</th><th>{valid}</th>{metrics}<th>{seeds}</th><th>best epoch</th>"
    lines, last_group = [], None
    for row in rows:
        name, point_line = _text(row.group), f"<small>{_text(row.point)}</small>"
        cells = f"<td><b>{name}</b> {_text(row.level)}{point_line}</td><td>{row.valid}</td>"
        for entry in row.entries:
            value = f"<b>{entry.text}</b>" if entry.best else entry.text
            interval = f'<small class="marked">{entry.interval}</small>'
            cells += f'<td>{value}<span class="mark">{entry.marks}</span>{interval}</td>'
        cells += f"<td>{row.seeds}</td><td>{row.epochs}</td>"
        first = ' class="first"' if row.group != last_group else ""
        lines.append(f"<tr{first}>{cells}</tr>")
        last_group = row.group
    table = f'<div class="scroll"><table><tr>{head}</tr>{"".join(lines)}</table></div>'
    return f'{table}<p class="quiet">{_text(tables.legend(study, compared))}</p>'


def _question(study: Study) -> str:
    names = [cell.level for cell in study.cells if cell.name == cell.reference]
    return f"Is {names[0]} better than its controls?" if names else "Models side by side"


def _contrast(
    study: Study, found: dict[tuple[str, str], Summary], compared: Sequence[Comparison]
) -> str:
    panels = [plots.contrast(study, found, metric) for metric in study.metrics[:2]]
    entries = "".join(
        f"<li><b>{_text(group)}</b>: {_text(_unbroken(text))}</li>"
        for group, text in prose.readings(study, found, compared, study.metrics[0])
    )
    names = sorted({cell.name for cell in stats.baselines(study).values()})
    note = f"Dashed: the best without features, {', '.join(names)}." if names else ""
    reading = f"<p>{_text(study.metrics[0])}, p by Holm:</p><ul>{entries}</ul>" if entries else ""
    return f'{_panels(panels)}<p class="quiet">{_text(note)}</p>{reading}'


def _unbroken(text: str) -> str:
    """Put no-break spaces between numbers and their units and signs."""
    for part in (" %", "p = ", "p < ", "d_z "):
        text = text.replace(part, part.replace(" ", "\N{NO-BREAK SPACE}"))
    return text


def _comparisons(study: Study, compared: Sequence[Comparison]) -> str:
    if not compared:
        return ""
    head = "<th>cell</th>"
    for metric in study.metrics:
        head += f"<th>{_text(metric)}<small>d_z</small></th><th>p (Holm)<small>p</small></th>"
    body: dict[tuple[str, str], str] = {}
    for test in compared:
        name = f"<td>{_text(test.cell)}<small>against {_text(test.against)}</small></td>"
        difference, d_z, p, adjusted = map(_text, tables.figures(test))
        adjusted = f"<b>{adjusted}</b>" if test.significant else adjusted
        line = body.setdefault((test.cell, test.against), name)
        line += f"<td>{difference}<small>{d_z}</small></td><td>{adjusted}<small>{p}</small></td>"
        body[test.cell, test.against] = line
    lines = "".join(f"<tr>{line}</tr>" for line in body.values())
    note = "Differences of means, cell minus the other; below them the effect size d_z, the mean "
    note += "difference in standard deviations of users' differences. "
    note += f"Bold: p by Holm below {stats.ALPHA:g}."
    table = f'<div class="scroll"><table><tr>{head}</tr>{lines}</table></div>'
    return f'{table}<p class="quiet">{note}</p>'


def _keys(study: Study) -> str:
    """Return an HTML legend of the levels' colours and markers.

    "" where there is only one level.
    """
    levels = [level for level in plots.levels(study) if level or len(study.cells) > 1]
    spans = []
    for index, level in enumerate(plots.levels(study)):
        color = f"var(--c{index % len(plots.COLORS)})"
        sign = plots.SIGNS[index % len(plots.SIGNS)]
        name = _text(level or "not compared")
        spans.append(f'<span><b style="color:{color}">{sign}</b> {name}</span>')
    return f'<p class="quiet keys">{"".join(spans)}</p>' if len(levels) > 1 else ""


def _panels(panels: Sequence[str]) -> str:
    return f'<div class="panels">{"".join(panels)}</div>'


def _sensitivity(study: Study) -> str:
    axes = dict.fromkeys(
        (cell.model, key) for cell in study.cells if cell.done for key in cell.axes
    )
    panels = [panel for model, key in axes if (panel := plots.sensitivity(study, model, key))]
    if not panels:
        return ""
    note = "The best validation value at each value of an axis, over all values of the others."
    return f'<p class="quiet">{note}</p>{_keys(study)}{_panels(panels)}'


def _curves(study: Study) -> str:
    groups = dict.fromkeys(cell.group for cell in study.tested)
    panels = [panel for group in groups if (panel := plots.curves(study, group))]
    note = "The chosen trials, a line a seed; the sign is at the best epoch, whose weights count."
    return f'<p class="quiet">{note}</p>{_keys(study)}{_panels(panels)}' if panels else ""


def _scatter(study: Study) -> str:
    metric = study.metrics[0]
    common = set.intersection(*(set(run.results["test"]) for run in study.runs))
    wanted = [f"{name}@{metric.split('@')[1]}" for name in ("arp", "coverage", "aplt")]
    available = [name for name in wanted if name in common][:2]
    if not available:
        return ""
    panels = [plots.scatter(study, metric, name) for name in available]
    note = "arp is the mean popularity of what is listed, coverage the share of the catalogue in "
    note += "any list; aplt the share of listed items outside the popular head."
    return f'<p class="quiet">{note}</p>{_keys(study)}{_panels(panels)}'


def _ranks(study: Study) -> str:
    ranks = stats.ranks(study)
    if ranks is None:
        return ""
    order = sorted(zip(ranks.found.ranks, ranks.models, strict=True))
    table = _table(["model", "average rank"], [[name, f"{rank:.2f}"] for rank, name in order])
    joined = "; ".join(
        ", ".join(ranks.models[index] for index in group) for group in ranks.found.groups
    )
    text = (
        f"By {study.metrics[0]} over {ranks.blocks} datasets. Nemenyi's critical difference is "
        f"{ranks.found.distance:.2f} at {stats.ALPHA:g}; Friedman's p is "
        f"{ranks.found.friedman_p:.3f}. "
    )
    text += f"Not told apart: {joined}." if joined else "All are told apart."
    return f"{table}<p>{_text(text)}</p>"


def _costs(study: Study) -> str:
    return f'{_table(*prose.costs(study))}<p class="quiet">{prose.COSTS}</p>'


def _missing(study: Study) -> str:
    parts = []
    failed = [(cell, line) for cell in study.cells for line in cell.failed]
    if failed:
        head = ["cell", "point", "seed", "error"]
        rows = [
            [cell.name, point(line["point"]), str(line["seed"]), line["error"]]
            for cell, line in failed
        ]
        table = f'<div class="said">{_table(head, rows, left=4)}</div>'
        parts.append(f"<p>Failed, {len(failed)} trials:</p>{table}")
    for reason, names in prose.missing(study).items():
        parts.append(f"<p>{reason}: {_text(', '.join(names))}.</p>")
    return "".join(parts) or "<p>None.</p>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return an HTML table whose first `left` columns are text."""

    def line(cells: Sequence[str], tag: str) -> str:
        tags = []
        for column, cell in enumerate(cells):
            kind = ' class="left"' if column < left else ""
            tags.append(f"<{tag}{kind}>{_text(cell)}</{tag}>")
        return f"<tr>{''.join(tags)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table>{line(head, "th")}{body}</table></div>'


def _text(value: Any) -> str:
    return html.escape(str(value))
