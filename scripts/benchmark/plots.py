"""Plot the benchmark's numbers into pictures beside its JSON."""

from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

COLORS = ("#2a6f97", "#e07a5f", "#8a8f98")
TITLES = {"epoch_s": "an epoch, s", "eval_s": "an evaluation, s"}


def of_times(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot a panel of bars for each kind of time.

    A bar is the median of a model and side; a line goes from its fastest to its slowest repeat.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.get("times", {})))
    models = list(dict.fromkeys(row["model"] for row in rows))
    sides = list(dict.fromkeys(row["side"] for row in rows))
    if not names:
        return
    height = 1.1 + 0.28 * len(models) * len(sides)
    figure, panels = plt.subplots(
        1, len(names), figsize=(4.2 * len(names) + 1, height), squeeze=False, layout="constrained"
    )
    for name, panel in zip(names, panels[0], strict=True):
        for row in rows:
            times = row.get("times", {}).get(name)
            if not times:
                continue
            side = sides.index(row["side"])
            y = models.index(row["model"]) + (side - (len(sides) - 1) / 2) * 0.8 / len(sides)
            color = COLORS[side % len(COLORS)]
            panel.barh(y, median(times), 0.72 / len(sides), color=color, label=row["side"])
            panel.plot([min(times), max(times)], [y, y], color="black", linewidth=1)
            panel.annotate(
                f"{median(times):.3g}",
                (max(times), y),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        panel.set_yticks(range(len(models)), models)
        panel.invert_yaxis()
        panel.margins(x=0.14)
        panel.set_xlim(left=0)
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.set_title(TITLES.get(name, name.removesuffix("_s") + ", s"), loc="left", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    if len(sides) > 1:
        handles, labels = panels[0][0].get_legend_handles_labels()
        handle_of = dict(zip(labels, handles, strict=True))
        figure.legend(
            handle_of.values(), handle_of.keys(), loc="outside lower center", ncols=len(handle_of)
        )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def of_growth(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot seconds of an epoch over interactions.

    Both axes are logarithmic. A dotted line grows linearly from the first point.
    """
    figure, panel = plt.subplots(figsize=(5.6, 4), layout="constrained")
    for number, model in enumerate(dict.fromkeys(row["model"] for row in rows)):
        model_rows = [row for row in rows if row["model"] == model]
        x = [row["train_interactions"] for row in model_rows]
        y = [row["epoch_s"] for row in model_rows]
        color = COLORS[number % len(COLORS)]
        panel.plot(x, y, "o-", color=color, label=model)
        panel.plot(x, [y[0] * n / x[0] for n in x], ":", color=color, linewidth=1)
    panel.set(xscale="log", yscale="log", xlabel="train interactions", ylabel="an epoch, s")
    panel.set_title("dotted: linear growth from the first point", loc="left", fontsize=10)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def of_scaling(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot a device's memory and traffic over device counts.

    The panels are held, scratch and received bytes, all axes logarithmic. Dotted lines are the held
    and scratch bytes if everything were divided by the number of devices.
    """
    names = {"held_bytes": "held, GB", "scratch_bytes": "scratch, GB"}
    if any(row["received_bytes"] for row in rows):  # one device receives nothing
        names["received_bytes"] = "received a step, GB"
    figure, panels = plt.subplots(
        1, len(names), figsize=(3.4 * len(names), 3.4), layout="constrained"
    )
    for number, model in enumerate(dict.fromkeys(row["model"] for row in rows)):
        model_rows = [row for row in rows if row["model"] == model]
        color = COLORS[number % len(COLORS)]
        for name, panel in zip(names, panels, strict=True):
            points = [(row["devices"], row[name] / 1e9) for row in model_rows if row[name]]
            panel.plot(*zip(*points, strict=True), "o-", color=color, label=model)
            if name != "received_bytes":
                first, value = points[0]
                ideal = [value * first / devices for devices, _ in points]
                panel.plot([n for n, _ in points], ideal, ":", color=color, linewidth=1)
    devices = sorted({row["devices"] for row in rows})
    for title, panel in zip(names.values(), panels, strict=True):
        panel.set(xscale="log", yscale="log", xlabel="devices")
        panel.set_xticks(devices, devices)
        panel.minorticks_off()
        panel.set_title(f"{title} a device", loc="left", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, title="dotted: 1 / devices")
    figure.savefig(path, dpi=130)
    plt.close(figure)
