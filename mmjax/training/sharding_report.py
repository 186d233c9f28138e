"""What a config puts on each device of a mesh, and what its compiled epoch sends between them."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from mmjax.data import dataset as datasets
from mmjax.parallel import mesh as meshes
from mmjax.training import ensemble, experiment, settings

# `%name = f32[16,64]{1,0} all-gather(` of a compiled program, `-start(` where it does not wait.
COLLECTIVE = re.compile(
    r"= (?P<result>\([^)]*\)|\S+) (?P<kind>all-reduce|all-gather|all-to-all|reduce-scatter|"
    r"collective-permute)(?:-start)?\("
)
ARRAY = re.compile(r"(pred|[a-z]+\d+)\[([\d,]*)\]")


def explain(config: settings.Config) -> str:
    """A report on a training run that is not started: arrays, memory, collectives.

    Raises:
      InputError: as a run's start.
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
        found = collectives(trials.program.as_text())
        if not found:
            lines.append("nothing travels between devices")
        else:
            head = ("when", "collective", "result", "bytes", "times")
            lines += table(head, [(*key, str(times)) for key, times in found])
    return "\n".join(lines)


def arrays(trials: ensemble.Ensemble) -> tuple[list[tuple[str, ...]], int]:
    """A line for each array that a run keeps on the devices, largest first, and their bytes."""
    kept = {"state": trials.shapes(), "frozen": trials.frozen, "interactions": trials.data}
    found = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(kept)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        own = int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        spec = [axis for axis in leaf.sharding.spec if axis]
        axes = [" and ".join(axis) if isinstance(axis, tuple) else axis for axis in spec]
        shape = " x ".join(map(str, leaf.shape)) or "one number"
        found.append((own, (name, f"{shape} {leaf.dtype}", ", ".join(axes) or "whole", size(own))))
    found.sort(key=lambda one: -one[0])
    return [row for _, row in found], sum(own for own, _ in found)


def collectives(text: str) -> list[tuple[tuple[str, ...], int]]:
    """(when, kind, result, bytes) of a compiled program's collectives, and how often each stands
    there; those in loops run at every step, or at every turn of a loop within it."""
    found: Counter[tuple[int, tuple[str, ...]]] = Counter()
    for inside, line in _lines(text):
        for match in COLLECTIVE.finditer(line):
            number = bytes_of(match["result"])
            shown = ", ".join(f"{kind}[{n}]" for kind, n in ARRAY.findall(match["result"]))
            when = "every step" if inside else "once an epoch"
            found[number, (when, match["kind"], shown, size(number))] += 1
    ordered = sorted(found.items(), key=lambda one: (one[0][1][0], -one[0][0]))  # largest first
    return [(key, times) for (_, key), times in ordered]


def _lines(text: str) -> Iterator[tuple[bool, str]]:
    """Lines of a program, and whether they stand in a loop's body rather than at the top."""
    inside = True
    for line in text.splitlines():
        if line.startswith(("ENTRY", "%", "}")):
            inside = not line.startswith("ENTRY")
        yield inside, line


def bytes_of(result: str) -> int:
    """Of all arrays in a text like `f32[16,64], pred[]`."""
    found = 0
    for kind, shape in ARRAY.findall(result):
        width = 8 if kind == "pred" else int(re.sub(r"\D", "", kind))
        found += int(np.prod([int(n) for n in shape.split(",") if n])) * width // 8
    return found


def size(count: float) -> str:
    """Bytes for people: 1.5 MB."""
    units = ["B", "kB", "MB", "GB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        units.pop(0)
    return f"{count:.3g} {units[0]}"


def table(head: tuple[str, ...], rows: list[Any]) -> list[str]:
    """Lines with the columns below each other."""
    widths = [max(len(row[n]) for row in [head, *rows]) for n in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [head, *rows]
    ]
