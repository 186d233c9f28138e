"""Time calls, measure these cores and compare two measurements."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from mmjax.core.errors import InputError

LEAST = 0.05  # relative change of a median up to which times count as the same
FEWEST = 3  # repeats that each side needs for a verdict


def timed(call: Callable[[], Any], repeats: int) -> list[float]:
    """Return the seconds of each call."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return times


def warm(call: Callable[[], Any], repeats: int) -> list[float]:
    """Return the seconds of each call after one to warm up."""
    call()
    return timed(call, repeats)


def limits() -> dict[str, float]:
    """Measure the FLOP/s and bytes/s of this process.

    FLOPs are of a float32 product of [2048, 2048], bytes of reading 256 MB and writing them in
    place, on the device, or the cores, that this process has.
    """
    import jax
    import jax.numpy as jnp

    square, long = jnp.ones((2048, 2048)), jnp.ones(2**26)
    product, add = jax.jit(jnp.matmul), jax.jit(lambda x: x + 1, donate_argnums=0)

    def in_place() -> None:
        nonlocal long
        long = add(long)
        long.block_until_ready()

    product_s = median(warm(lambda: product(square, square).block_until_ready(), 5))
    return {
        "peak_flop_s": 2 * 2048**3 / product_s,
        "peak_bytes_s": 2 * long.nbytes / median(warm(in_place, 5)),
    }


def compare(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, bool]:
    """Compare every time of two measurements.

    A time is slower or faster if its median moved by more than `LEAST` and no repeat of one side
    lies among those of the other. Beside it stands how fast the machine itself was.

    Args:
      old, new: what the benchmark wrote, of the same settings.

    Returns:
      Markdown, and True if a time became slower.

    Raises:
      InputError: the settings differ, or no time is in both.
    """
    for name in sorted(old["settings"].keys() | new["settings"].keys()):
        before, after = (record["settings"].get(name) for record in (old, new))
        if before != after:
            raise InputError(f"these measured different things: {name} is {before} and {after}")
    before = {(row["model"], row["side"]): row for row in old["rows"]}
    lines = ["| | | before, s | after, s | times | |", "|:--|:--|--:|--:|--:|:--|"]
    verdicts = []
    for row in new["rows"]:
        earlier = before.get((row["model"], row["side"]), {})
        for name, after in row.get("times", {}).items():
            if name in earlier.get("times", {}):
                old_s = earlier["times"][name]
                verdicts.append(verdict(old_s, after))
                label = f"{row['model']}, {row['side']} | {name}"
                ratio = median(after) / median(old_s)
                lines.append(
                    f"| {label} | {shown(old_s)} | {shown(after)} | {ratio:.2f} | {verdicts[-1]} |"
                )
    if not verdicts:
        raise InputError("these have no model and side in common that was timed")
    speeds = [
        median(peaks(new, key)) / median(peaks(old, key)) if peaks(old, key) else float("nan")
        for key in ("peak_flop_s", "peak_bytes_s")
    ]
    machine = f"the machine itself: products at {speeds[0]:.2f}, copies at {speeds[1]:.2f} times "
    machine += f"the speed it had ({old['cpu']}; {new['cpu']})"
    return "\n".join([*lines, "", machine]), "slower" in verdicts


def verdict(before: Sequence[float], after: Sequence[float]) -> str:
    if min(len(before), len(after)) < FEWEST:
        return f"unsure, fewer than {FEWEST} repeats"
    if abs(median(after) / median(before) - 1) <= LEAST:
        return "same"
    if min(after) > max(before):
        return "slower"
    if max(after) < min(before):
        return "faster"
    return "same, within its noise"


def peaks(one: dict[str, Any], key: str) -> list[float]:
    return [row[key] for row in one["rows"] if key in row]


def shown(times: Sequence[float]) -> str:
    """Format the median of times with their range."""
    if len(times) < 2:
        return f"{times[0]:.3g}" if times else ""
    return f"{median(times):.3g} ({min(times):.3g}–{max(times):.3g})"
