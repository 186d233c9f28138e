"""Report memory per device and collectives of a training config.

It shows what the config puts on each device of a mesh, and what its compiled epoch sends between
devices.
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from mmjax.data import dataset as datasets
from mmjax.parallel import mesh as meshes
from mmjax.training import ensemble, experiment, settings

# `%name = f32[16,64]{1,0} all-gather(` in a compiled program; `-start(` if it is asynchronous.
COLLECTIVE = re.compile(
    r"= (?P<result>\([^)]*\)|\S+) (?P<kind>all-reduce|all-gather|all-to-all|reduce-scatter|"
    r"collective-permute)(?:-start)?\("
)
ARRAY = re.compile(r"(pred|[a-z]+\d+)\[([\d,]*)\]")


def explain(config: settings.Config) -> str:
    """Return a report on a training run, without starting it.

    The report covers arrays, memory and collectives.

    Raises:
      InputError: for the faults that a run's start finds.
    """
    settings.check(config)
    data = datasets.load(settings.required(config, "dataset"))
    trials = experiment.trials(config, data, experiment.features(config, data), put=meshes.plan)
    mesh = ", ".join(f"{axis} {size}" for axis, size in trials.mesh.shape.items())
    lines = [f"mesh: {mesh} ({trials.mesh.size} x {trials.mesh.devices.flat[0].device_kind})", ""]
    rows, total = arrays(trials)
    lines += table(("array", "shape", "split over", "bytes a device"), rows)
    lines += ["", f"together {size(total)} a device"]
    if trials.trainable:
        memory = trials.program.memory_analysis()
        lines += [f"scratch of the epoch's program {size(memory.temp_size_in_bytes)} a device", ""]
        counts = collectives(trials.program.as_text())
        if not counts:
            lines.append("nothing travels between devices")
        else:
            head = ("when", "collective", "result", "bytes", "times")
            lines += table(head, [(*key, str(times)) for key, times in counts])
    return "\n".join(lines)


def arrays(trials: ensemble.Ensemble) -> tuple[list[tuple[str, ...]], int]:
    """Return a row for each device array, and the total bytes.

    The rows are those of `table`, largest array first; bytes are per device.
    """
    kept = {"state": trials.shapes(), "frozen": trials.frozen, "interactions": trials.data}
    entries = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(kept)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        nbytes = int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        spec = [axis for axis in leaf.sharding.spec if axis]
        axes = [" and ".join(axis) if isinstance(axis, tuple) else axis for axis in spec]
        shape = " x ".join(map(str, leaf.shape)) or "one number"
        entries.append(
            (nbytes, (name, f"{shape} {leaf.dtype}", ", ".join(axes) or "whole", size(nbytes)))
        )
    entries.sort(key=lambda entry: -entry[0])
    return [row for _, row in entries], sum(nbytes for nbytes, _ in entries)


def collectives(text: str) -> list[tuple[tuple[str, ...], int]]:
    """Count the collectives of a compiled program.

    Returns:
      Pairs of (when, kind, result, bytes) and the number of times that it occurs in the text.
      Collectives in loops run at every step, or at every turn of a loop within it.
    """
    counts: Counter[tuple[int, tuple[str, ...]]] = Counter()
    for inside, line in _lines(text):
        for match in COLLECTIVE.finditer(line):
            nbytes = bytes_of(match["result"])
            shown = ", ".join(f"{kind}[{dims}]" for kind, dims in ARRAY.findall(match["result"]))
            when = "every step" if inside else "once an epoch"
            counts[nbytes, (when, match["kind"], shown, size(nbytes))] += 1
    # By `when`, then largest first.
    ordered = sorted(counts.items(), key=lambda entry: (entry[0][1][0], -entry[0][0]))
    return [(key, times) for (_, key), times in ordered]


def _lines(text: str) -> Iterator[tuple[bool, str]]:
    """Yield program lines, each with whether it is in a loop.

    A line is in the body of a loop if it is not in the entry computation.
    """
    inside = True
    for line in text.splitlines():
        if line.startswith(("ENTRY", "%", "}")):
            inside = not line.startswith("ENTRY")
        yield inside, line


def bytes_of(result: str) -> int:
    """Return the bytes of all arrays in `f32[16,64], pred[]` or similar."""
    total = 0
    for kind, shape in ARRAY.findall(result):
        width = 8 if kind == "pred" else int(re.sub(r"\D", "", kind))
        total += int(np.prod([int(n) for n in shape.split(",") if n])) * width // 8
    return total


def size(count: float) -> str:
    """Format a number of bytes for people, e.g. 1.5 MB."""
    units = ["B", "kB", "MB", "GB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        units.pop(0)
    return f"{count:.3g} {units[0]}"


def table(head: tuple[str, ...], rows: list[Any]) -> list[str]:
    """Return the lines of a table with aligned columns."""
    widths = [max(len(row[n]) for row in [head, *rows]) for n in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [head, *rows]
    ]
