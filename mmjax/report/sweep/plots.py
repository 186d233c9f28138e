"""Draw the figures of a sweep's report as SVG.

Each figure is one panel that a page embeds. Text stays text. Ink and colours are drawn in
placeholder colours, which become `currentColor` and the page's CSS variables, so that one drawing
serves a light page and a dark one. A level has the same colour and marker in all figures.
"""

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator, NullLocator

from mmjax.report.sweep.stats import Summary, baselines
from mmjax.report.sweep.study import Cell, Study, curve

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
WIDTH = 4.9  # inches: 353 units of the drawing, about the pixels of a panel
INK, QUIET, LINE, PAPER = "#010203", "#040506", "#070809", "#0a0b0c"
COLORS = tuple(f"#0d0e{n:02x}" for n in range(16, 22))
MARKERS = "osD^vPX*"
SIGNS = "●■◆▲▼✚✖★"  # MARKERS as text
PAINT = {INK: "currentColor", QUIET: "var(--quiet)", LINE: "var(--line)", PAPER: "var(--paper)"}
PAINT |= {color: f"var(--c{n})" for n, color in enumerate(COLORS)}
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "mmjax"}
STYLE |= {"font.size": 11, "text.color": INK}
STYLE |= {"axes.labelcolor": QUIET, "axes.edgecolor": LINE, "axes.titlesize": 11}
STYLE |= {"axes.titleweight": "bold", "axes.titlelocation": "left", "axes.labelsize": 10.5}
STYLE |= {"xtick.color": LINE, "ytick.color": LINE, "xtick.labelcolor": INK}
STYLE |= {"ytick.labelcolor": INK, "axes.spines.top": False, "axes.spines.right": False}
STYLE |= {"xtick.labelsize": 10.5, "ytick.labelsize": 10.5, "axes.titlepad": 10}
STYLE |= {"text.parse_math": False}  # a level may be called a$b$
LOG = 20  # an axis whose values span more than this factor is logarithmic
MANY = 8  # above so many values points have no line: random search repeats none


def levels(study: Study) -> list[str]:
    """Return the levels in the order of their colours and markers.

    Reference levels come first; the level "" of cells that are not compared comes last.
    """
    first = [cell.level for cell in study.cells if cell.name == cell.reference]
    known = dict.fromkeys([*first, *(cell.level for cell in study.cells)])
    return sorted(known, key=lambda level: not level)  # what is not compared comes last


def look(study: Study, level: str) -> tuple[str, str]:
    """Return the colour and the marker of a level."""
    index = levels(study).index(level)
    return COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]


@plt.rc_context(STYLE)  # type: ignore[operator]
def contrast(study: Study, found: Mapping[tuple[str, str], Summary], metric: str) -> str:
    """Draw a metric of each level with its interval, by group.

    Groups stand below one another. The best cell without features is a dashed line.
    """
    shown = [cell for cell in study.tested if cell.content or cell.reference]
    shown = shown or study.tested
    labels: list[tuple[str, bool]] = []  # (text, True for a group's)
    dashed: list[tuple[str, float, float]] = []
    figure, axis = _panel(0.9 + 0.27 * (len(shown) + 1.4 * len({c.group for c in shown})), metric)
    best = baselines(study)
    for group in dict.fromkeys(cell.group for cell in shown):
        labels.append((group, True))
        cells = [cell for cell in shown if cell.group == group]
        for cell in cells:
            color, marker = look(study, cell.level)
            summary, y = found[cell.name, metric], len(labels)
            if not math.isnan(summary.low):
                axis.plot(
                    [summary.low, summary.high], [y, y], color=color, lw=2, solid_capstyle="butt"
                )
            axis.plot(summary.mean, y, marker=marker, color=color, ms=8, mec=PAPER, mew=0.6)
            labels.append((cell.level or "–", False))
        if cells[0].block in best:
            baseline = best[cells[0].block]
            value, y = found[baseline.name, metric].mean, len(labels)
            span = [y - len(cells) - 0.5, y - 0.5]
            axis.plot([value, value], span, color=INK, lw=1.2, ls=(0, (4, 3)), zorder=0)
            dashed.append((baseline.name, value, span[0]))
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.set_yticks(range(len(labels)), [label for label, _ in labels])
    for text, (_, bold) in zip(axis.get_yticklabels(), labels, strict=True):
        text.set_fontweight("bold" if bold else "normal")
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.grid(axis="x", color=LINE, lw=0.8)
    axis.set_axisbelow(True)
    axis.xaxis.set_major_locator(MaxNLocator(5))
    left, right = axis.get_xlim()
    for name, x, top in dashed:  # names stay inside the axis, clear of its labels
        fraction = (x - left) / (right - left)
        side = "left" if fraction < 0.2 else "right" if fraction > 0.8 else "center"
        options = {"ha": side, "va": "bottom", "fontsize": 10, "color": QUIET}
        axis.annotate(name, (x, top), (0, 2), textcoords="offset points", **options)
    return _svg(figure, f"contrast-{metric}", f"{metric} of each level, with 95 % intervals")


@plt.rc_context(STYLE)  # type: ignore[operator]
def sensitivity(study: Study, model: str, key: str) -> str:
    """Draw the best validation metric over an axis's values.

    The best is over the values of the other axes; one line a cell.

    Returns:
      The SVG; "" where fewer than two values were tried.
    """
    cells = [c for c in study.cells if c.model == model and key in c.axes and c.done]
    tuned = {cell.name: _best_at(cell, key, study.sweep["seeds"][0]) for cell in cells}
    tried = {value for best in tuned.values() for value in best}
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in tried)
    listed = [_plain_value(value) for cell in cells for value in cell.axes[key]]
    ticks = sorted(tried) if numbers else [v for v in dict.fromkeys(listed) if v in tried]
    if len(ticks) < 2:
        return ""
    figure, axis = _panel(2.5, f"{model}: {key}")
    for cell in cells:
        color, marker = look(study, cell.level)
        points = sorted(
            (value if numbers else ticks.index(value), best)
            for value, best in tuned[cell.name].items()
        )
        line = "-" if numbers and len(points) <= MANY else "none"
        axis.plot(*zip(*points, strict=True), color=color, marker=marker, ls=line, **_thin())
    if not numbers:
        axis.set_xticks(range(len(ticks)), [_short(str(value)) for value in ticks])
    elif min(ticks) > 0 and max(ticks) > LOG * min(ticks):
        axis.set_xscale("log")
        shown = ticks if len(ticks) <= 6 else np.geomspace(min(ticks), max(ticks), 4)
        axis.set_xticks(shown, [f"{value:.2g}" for value in shown])
    elif len(ticks) <= 6:
        axis.set_xticks(ticks, [f"{value:g}" for value in ticks])
    _plain(axis, "", _valid(study))
    return _svg(figure, f"sensitivity-{model}-{key}", f"{model}: validation against {key}")


def _best_at(cell: Cell, key: str, seed: int) -> dict[Any, float]:
    """Return the best validation metric at each value of an axis.

    Only trials of the seed that tuned are read.
    """
    best: dict[Any, float] = {}
    for line in cell.done:
        if line["seed"] == seed and key in line["point"]:
            value = _plain_value(line["point"][key])
            best[value] = max(line["valid"], best.get(value, -math.inf))
    return best


def _plain_value(value: Any) -> Any:
    """Return a value as a dict key: a list as its text."""
    return str(value) if isinstance(value, list | dict) else value


@plt.rc_context(STYLE)  # type: ignore[operator]
def curves(study: Study, group: str) -> str:
    """Draw validation over epochs of a group's tested trials.

    One line a seed; a marker at the best epoch.

    Returns:
      The SVG; "" where no metrics are kept.
    """
    figure, axis = _panel(2.5, group)
    n_points = 0
    for cell in study.tested:
        for run in cell.runs if cell.group == group else []:
            epochs, values = curve(study, run)
            color, marker = look(study, cell.level)
            axis.plot(epochs, values, color=color, lw=1.3, alpha=0.7)
            if run.line["best_epoch"] in epochs:
                index = epochs.index(run.line["best_epoch"])
                axis.plot(epochs[index], values[index], color=color, marker=marker, **_thin())
            n_points += len(epochs)
    if not n_points:
        plt.close(figure)
        return ""
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _plain(axis, "epoch", _valid(study))
    return _svg(figure, f"curves-{group}", f"{group}: validation over epochs")


@plt.rc_context(STYLE)  # type: ignore[operator]
def scatter(study: Study, metric: str, against: str) -> str:
    """Draw one metric against another, a marker a cell.

    Both are means over seeds. A cell's name stands beside the panel, at the other end of a line, so
    that no two names overlap however close the cells lie.
    """
    cells = study.tested
    height = max(3.2, 0.9 + 0.19 * len(cells))
    figure, axis = _panel(height, f"{metric} against {against}")
    xs, ys = (
        [float(np.mean([run.results["test"][name] for run in cell.runs])) for cell in cells]
        for name in (against, metric)
    )
    axis.margins(0.08)
    for cell, x, y in zip(cells, xs, ys, strict=True):
        color, marker = look(study, cell.level)
        axis.plot(x, y, color=color, marker=marker, **_thin() | {"ms": 7.5})
    _plain(axis, against, metric)
    axis.xaxis.set_major_locator(MaxNLocator(3))
    if not against.startswith("arp"):  # a share: there is room beyond 1, but nothing to read
        axis.set_xticks([tick for tick in axis.get_xticks() if 0 <= tick <= 1])
    low, high = axis.get_ylim()
    order = np.argsort(ys, kind="stable")
    heights = _apart([(ys[n] - low) / (high - low) for n in order], 13 / (72 * (height - 0.8)))
    for n, label_y in zip(order, heights, strict=True):
        color, _ = look(study, cells[n].level)
        line = {"arrowstyle": "-", "color": color, "lw": 0.7, "alpha": 0.6, "shrinkA": 2}
        axis.annotate(
            f"{cells[n].group} {cells[n].level}".strip(),
            (xs[n], ys[n]),
            (1.06, label_y),
            textcoords="axes fraction",
            va="center",
            fontsize=10,
            arrowprops=line | {"shrinkB": 4, "relpos": (0, 0.5)},
        )
    return _svg(figure, f"scatter-{against}", f"{metric} against {against} of each cell")


def _apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Move rising positions in [0, 1] at least `gap` apart.

    They stay near the wanted positions, which rise.
    """
    up, down, last = list(wanted), list(wanted), len(wanted) - 1
    for n in range(last):
        up[n + 1] = max(up[n + 1], up[n] + gap)
    for n in reversed(range(last)):
        down[n] = min(down[n], down[n + 1] - gap)
    # Means of `up` and `down` are a gap apart, as both of them are.
    positions = [(high + low) / 2 for high, low in zip(up, down, strict=True)]
    for n, position in enumerate(positions):
        positions[n] = max(position, n * gap)
    return [min(position, 1 - (last - n) * gap) for n, position in enumerate(positions)]


def _thin() -> dict[str, Any]:
    """Return the style of a line with small outlined markers.

    The outline in the paper's colour separates a marker from what it lies on.
    """
    return {"lw": 1.6, "ms": 6.5, "mec": PAPER, "mew": 0.6}


def _valid(study: Study) -> str:
    metrics = {run.results["config"]["metric"] for run in study.runs}
    return f"valid {metrics.pop()}" if len(metrics) == 1 else "valid"


def _short(text: str) -> str:
    return text if len(text) <= 14 else text[:13] + "…"


def _panel(height: float, title: str) -> tuple[Any, Any]:
    figure, axis = plt.subplots(figsize=(WIDTH, height), layout="constrained")
    layout: Any = figure.get_layout_engine()
    layout.set(w_pad=0.06, h_pad=0.06)
    axis.set_title(title, color=INK)
    return figure, axis


def _plain(axis: Any, x: str, y: str) -> None:
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(color=LINE, lw=0.8)
    axis.set_axisbelow(True)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(MaxNLocator(5))
    axis.tick_params(length=0)


def _svg(figure: Any, name: str, told: str) -> str:
    """Return the figure as an <svg> element of a page.

    `name` prefixes its ids, so that figures of one page do not share any.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    plt.close(figure)
    text = buffer.getvalue()
    text = re.sub(r"<(metadata|style).*?</\1>", "", text[text.index("<svg") :], flags=re.S)
    prefix = re.sub(r"\W+", "-", name)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", text)
    for color, paint in PAINT.items():
        text = text.replace(color, paint)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    return (
        f'<svg role="img" aria-label="{html.escape(told)}" {box[0]} xmlns="{SVG}" '
        f'xmlns:xlink="{XLINK}">{text[text.index(">") + 1 :]}'
    )
