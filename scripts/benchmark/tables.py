"""Format the benchmark's numbers as Markdown."""

from benchmark import timing
from mmjax.training import sharding_report


def of_models(rows: list[dict]) -> str:
    """Format times, memory and speed-up of recommenders.

    GFLOP and GB are of a step, GB being what Adam moves. `least s` is the least time that an epoch
    of such steps takes on cores as fast as those measured. `epoch x` and `eval x` are the speed-up
    over torch.
    """
    head = ("model", "side", "epoch s", "eval s", "build s", "compile s", "peak MB")
    head += ("GFLOP", "GB", "least s", "epoch x", "eval x")
    lines = ["| " + " | ".join(head) + " |", "|:--|:--|" + "--:|" * (len(head) - 2)]
    for row in rows:
        peer = next((r for r in rows if r["model"] == row["model"] and r["side"] == "torch"), None)
        compile_s = row["compile_s"] + row["compile_eval_s"]
        cells = [
            row["model"],
            row["side"],
            *(timing.shown(row["times"].get(name, ())) for name in ("epoch_s", "eval_s")),
            f"{row['build_s']:.1f}",
            f"{compile_s:.1f}" if compile_s else "",
            f"{row['peak_rss_mb']:.0f}",
        ]
        cells += [f"{x:.2f}" for x in least(row)] if "step_flop" in row else [""] * 3
        compared = peer is not None and row["side"] != "torch"
        cells += [
            f"{peer[k] / row[k]:.1f}" if compared and k in row else ""
            for k in ("epoch_s", "eval_s")
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def least(row: dict) -> tuple[float, float, float]:
    """Return GFLOP, GB and the least seconds of an epoch.

    GFLOP and GB are of a step. The seconds are of an epoch that does nothing but both in turn.
    """
    flop, moved = row["step_flop"], row["step_bytes"]
    seconds = flop / row["peak_flop_s"] + moved / row["peak_bytes_s"]
    return flop / 1e9, moved / 1e9, seconds * row["steps"]


def of_trials(rows: list[dict]) -> str:
    head = "| model | points | epochs | one program s | one by one s | times | peak MB |"
    lines = [head, "|:--|" + "--:|" * 6]
    for row in rows:
        joint_s, each_s = row["together_s"], row["apart_s"]
        lines.append(
            f"| {row['model']} | {row['points']} | {row['epochs']} | {joint_s:.1f} | {each_s:.1f} "
            f"| {each_s / joint_s:.2f} | {row['together_peak_rss_mb']:.0f} |"
        )
    return "\n".join(lines)


def of_sweeps(rows: list[dict]) -> str:
    head = ("model", "points", "sweep.py s", "train.py s", "times", "s/epoch of all", "one by one")
    head = (*head, "times", "overhead", "valid apart")
    lines = ["| " + " | ".join(head) + " |", "|:--|" + "--:|" * (len(head) - 1)]
    for sweep_row, train_row in zip(rows[::2], rows[1::2], strict=True):
        cells = (
            sweep_row["model"],
            str(len(train_row["valid"])),
            f"{sweep_row['wall_s']:.1f}",
            f"{train_row['wall_s']:.1f}",
            f"{train_row['wall_s'] / sweep_row['wall_s']:.2f}",
            f"{sweep_row['epoch_s']:.3f}",
            f"{train_row['epoch_s']:.3f}",
            f"{train_row['epoch_s'] / sweep_row['epoch_s']:.2f}",
            f"{sweep_row['overhead']:.1%}",
            f"{sweep_row['apart']:.1e}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def of_growth(rows: list[dict]) -> str:
    lines = ["| model | interactions | epoch s | s a million | peak MB |", "|:--|" + "--:|" * 4]
    for row in rows:
        count = row["train_interactions"]
        lines.append(
            f"| {row['model']} | {count:,} | {timing.shown(row['times']['epoch_s'])} "
            f"| {1e6 * row['epoch_s'] / count:.3g} | {row['peak_rss_mb']:.0f} |"
        )
    return "\n".join(lines)


def of_scaling(rows: list[dict]) -> str:
    """Format memory and traffic of one of many devices.

    held: what lies on it; scratch: what the epoch needs in addition; received: in a step.
    """
    head = ("model", "devices", "mesh", "held", "scratch", "together", "received a step")
    head += ("build s", "compile s", "peak MB here")
    lines = ["| " + " | ".join(head) + " |", "|:--|--:|:--|" + "--:|" * (len(head) - 3)]
    for row in rows:
        held, scratch = row["held_bytes"], row["scratch_bytes"]
        sizes = [
            sharding_report.size(n) for n in (held, scratch, held + scratch, row["received_bytes"])
        ]
        cells = (row["model"], str(row["devices"]), row["mesh"], *sizes)
        cells += (f"{row['build_s']:.0f}", f"{row['compile_s']:.0f}", f"{row['peak_rss_mb']:.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def of_graph(row: dict) -> str:
    times = row["graph_s"] / row["product_s"]
    return (
        "| graph s | bare product s | times | compile s | peak MB |\n|--:|--:|--:|--:|--:|\n"
        f"| {row['graph_s']:.2f} | {row['product_s']:.2f} | {times:.2f} "
        f"| {row['compile_s']:.1f} | {row['graph_mb']:.0f} |"
    )


def of_encoders(rows: list[dict]) -> str:
    """Format encoders' speed, its ratio to PyTorch's, and our stages."""
    head = ("encoder", "side", "items/s", "times", "compile s", "host-wait", "stages, ms an item")
    lines = ["| " + " | ".join((*head, "apart")) + " |", "|:--|:--|--:|--:|--:|--:|:--|--:|"]
    ours = {row["model"]: row["items_s"] for row in rows if row["side"] == "mmjax"}
    for row in rows:
        is_ours = row["side"] == "mmjax"
        cells = (
            row["model"] if is_ours else "",
            row["side"],
            f"{row['items_s']:.1f}",
            "" if is_ours else f"{ours[row['model']] / row['items_s']:.2f}",
            f"{row['compile_s']:.1f}" if is_ours else "",
            f"{row['host_wait']:.0%}" if is_ours else "",
            ", ".join(f"{k} {v:.2f}" for k, v in row["stages_ms"].items()) if is_ours else "",
            "" if is_ours else f"{row['apart']:.1e}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def of_lvlm(name: str, rows: list[dict]) -> str:
    """Format ours, torch's and their ratio for each task."""
    ours, theirs = rows[0], rows[1] if len(rows) > 1 else None
    lines = [f"| {name} | mmjax | torch | times | compile s |", "|:--|--:|--:|--:|--:|"]
    for task, unit in (("prefill", "images_s"), ("mixed", "images_s"), ("decode", "tokens_s")):
        key = f"{task}_{unit}"
        times = f"{ours[key] / theirs[key]:.2f}" if theirs else ""
        torch_value = f"{theirs[key]:.1f}" if theirs else ""
        label = f"{task}, {unit.removesuffix('_s')}/s"
        compile_s = f"{ours[f'{task}_compile_s']:.1f}"
        lines.append(f"| {label} | {ours[key]:.1f} | {torch_value} | {times} | {compile_s} |")
    for key in ("prefill_tokens_s", "prefill_tflops", "prefill_peak_share", "peak_rss_mb"):
        if key in ours:
            cells = [f"{row[key]:.3g}" if key in row else "" for row in (ours, theirs or {})]
            lines.append(f"| {key} | {cells[0]} | {cells[1]} |  |  |")
    return "\n".join(lines)
