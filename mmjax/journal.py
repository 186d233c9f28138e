"""What a run says while it runs: metrics.jsonl, TensorBoard, a bar on a terminal or plain lines."""

import json
import sys
import time
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm

from mmjax import files

LINE_EVERY = 10.0  # seconds between progress lines where there is no terminal


class Journal:
    """Writes one JSON line an epoch, the same numbers to TensorBoard, and progress for people."""

    def __init__(self, workdir: Path, total: int, done: int = 0):
        """Goes on after `done` epochs; lines of later epochs, from before a kill, are dropped."""
        self._path = workdir / "metrics.jsonl"
        kept = [line for line in _lines(self._path) if json.loads(line)["epoch"] <= done]
        files.write_bytes(self._path, "".join(kept).encode())
        self._lines = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=done + 1)
        self._total, self._done, self._start = total, done, time.monotonic()
        self._first, self._said = done, 0.0
        terminal = sys.stderr.isatty()
        self._unsaid = ""
        self._bar = tqdm(total=total, initial=done, unit="epoch") if terminal else None

    def epoch(self, epoch: int, scalars: dict[str, float], say: str) -> None:
        """Records one epoch; `say` is the short text for people."""
        self._lines.write(json.dumps({"epoch": epoch, **scalars}) + "\n")
        self._lines.flush()
        for name, value in scalars.items():
            self._board.add_scalar(name.replace("@", "_"), value, epoch)
        self._done = epoch
        if self._bar is not None:
            self._bar.update(epoch - self._bar.n)
            self._bar.set_postfix_str(say)
            return
        now, self._unsaid = time.monotonic(), f"epoch {epoch}/{self._total} {say}"
        if now - self._said >= LINE_EVERY or epoch == self._total:
            print(self._unsaid, self._rate(now), flush=True)
            self._said, self._unsaid = now, ""

    def _rate(self, now: float) -> str:
        pace = (now - self._start) / max(1, self._done - self._first)
        left = pace * (self._total - self._done)
        return f"{pace:.2f} s/epoch, at most {left:.0f} s left"

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lines.close()
        self._board.close()
        if self._unsaid and kind is None:  # where it stopped early
            print(self._unsaid, flush=True)
        if self._bar is not None:
            self._bar.close()


def _lines(path: Path) -> list[str]:
    """The whole lines of a file; a last line cut off by a kill is left out."""
    if not path.exists():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def versions(*names: str) -> dict[str, Any]:
    """Versions of the packages that numbers depend on."""
    found = {name: metadata.version(name) for name in names}
    return {"python": sys.version.split()[0], **found}
