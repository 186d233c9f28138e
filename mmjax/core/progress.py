"""Show the progress of a long loop.

On a terminal it is a bar, otherwise a line now and then.
"""

import sys
import time
from types import TracebackType
from typing import TextIO

from tqdm import tqdm


class Progress:
    """Counter of units with their pace and the time left.

    The total is known. It is a context manager.
    """

    def __init__(
        self,
        what: str,
        total: int,
        *,
        unit: str = "item",
        done: int = 0,
        every_s: float = 10,
        out: TextIO | None = None,
        silent: bool = False,
    ):
        """Start after `done` units.

        A line is printed at most every `every_s` seconds, or never if `silent`.
        """
        self.what, self.total, self.unit, self.every_s = what, total, unit, every_s
        self.done = self._first = done
        self._out = out or sys.stderr
        self._bar, self._silent = None, silent
        if self._out.isatty() and not silent:
            self._bar = tqdm(total=total, initial=done, desc=what, unit=unit, file=self._out)
        self._begin, self._said, self._unsaid = time.monotonic(), 0.0, ""

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begin

    def add(self, count: int, say: str = "") -> None:
        """Count units that are done.

        `say` is a short text beside the number.
        """
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
            self._bar.set_postfix_str(say)
        if self._bar is not None or self._silent:
            return
        self._unsaid = f"{self.what} {self.done}/{self.total} {say}".rstrip()
        now = time.monotonic()
        if self.done >= self.total or now - self._said >= self.every_s:
            print(f"{self._unsaid}, {self._pace()}", file=self._out, flush=True)
            self._said, self._unsaid = now, ""

    def _pace(self) -> str:
        """Return the rate and the time left.

        The rate is seconds per unit where a unit takes long, else units per second.
        """
        unit_s = self.seconds / max(1, self.done - self._first)
        rate = (
            f"{unit_s:.2f} s/{self.unit}"
            if unit_s > 0.1
            else f"{1 / max(unit_s, 1e-9):.1f} {self.unit}s/s"
        )
        return f"{rate}, {unit_s * (self.total - self.done):.0f} s left"

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._unsaid and kind is None:  # a loop that stopped early
            print(self._unsaid, file=self._out, flush=True)
        if self._bar is not None:
            self._bar.close()
