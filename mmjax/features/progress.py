"""How far a long loop is: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType
from typing import TextIO

from tqdm import tqdm


class Progress:
    """Counts items of a known total, with their rate and the time left; a context manager."""

    def __init__(self, what: str, total: int, *, every_s: float = 10, out: TextIO | None = None):
        self.what, self.total, self.every_s = what, total, every_s
        self.done = 0
        self.out = out or sys.stderr
        self.bar = None
        if self.out.isatty():
            self.bar = tqdm(total=total, desc=what, unit="item", file=self.out)
        self.begin = self.said = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begin

    def add(self, count: int) -> None:
        """Counts items that are done."""
        self.done += count
        if self.bar is not None:
            self.bar.update(count)
        elif self.done >= self.total or time.monotonic() - self.said >= self.every_s:
            self.said = time.monotonic()
            rate = self.done / max(self.seconds, 1e-9)
            left = (self.total - self.done) / max(rate, 1e-9)
            print(
                f"{self.what}: {self.done} of {self.total} items, {rate:.1f} items/s, "
                f"{left:.0f} s left",
                file=self.out,
                flush=True,
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.close()
