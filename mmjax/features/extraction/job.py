"""Extraction jobs and the summaries of their results."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Job:
    """One encoder and the stores it fills.

    The store is `out`, or `out/<layer>` each for several layers. With `by_layer` it is
    `out/<layer>` for a single layer too.
    """

    encoder: str
    out: str
    options: dict[str, Any] = field(default_factory=dict)  # of its `load`
    batch: int = 32  # rows a device program takes, rounded up to divide over the devices
    dtype: str = "float32"  # of the stores, and of the computation where the encoder can choose
    chunk_rows: int | None = None  # CHUNK_ROWS, rounded up to whole batches, unless given
    on_error: str = "skip"  # inputs that cannot be read are absent and listed; or "stop"
    by_layer: bool = False


@dataclass
class ExtractionSummary:
    """Result of a job: stores, counts and times."""

    stores: list[str]
    items: int
    widths: list[int] = field(default_factory=list)
    present: int = 0
    encoded: int = 0  # rows that this call encoded; others were there from an earlier one
    failed: list[dict[str, str]] = field(default_factory=list)  # {"id", "input", "reason"}
    cut: int = 0  # inputs longer than the encoder's window
    unended: int = 0  # answers cut at the length limit, of an encoder that generates text
    seconds: float = 0.0
    waited: float = 0.0  # part of `seconds` in which the device waited for the host

    def __str__(self) -> str:
        absent = self.items - self.present
        widths = " + ".join(map(str, self.widths))
        text = f"{', '.join(self.stores)}: {self.items} items x {widths}, {self.present} present, "
        text += f"{absent} absent ({len(self.failed)} listed in failures.jsonl)"
        if self.cut:
            text += f", {self.cut} cut to the encoder's window"
        if self.unended:
            text += f", {self.unended} answers cut at their longest"
        if not self.encoded:
            return f"{text}; complete already"
        return (
            f"{text}; encoded {self.encoded} in {self.seconds:.1f} s, "
            f"{self.encoded / self.seconds:.1f} items/s, "
            f"{self.waited / self.seconds:.0%} of the time waiting for the host"
        )


def places(job: Job, layers: Iterable[str]) -> list[str]:
    """Return the store of each layer."""
    layers = list(layers)
    if len(layers) == 1 and not job.by_layer:
        return [job.out]
    return [f"{job.out.rstrip('/')}/{layer.replace(':', '-')}" for layer in layers]
