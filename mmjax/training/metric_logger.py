"""What a run says while it runs: metrics.jsonl, TensorBoard, a bar on a terminal or plain lines."""

import json
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from mmjax.core import files, storage
from mmjax.core.progress import Progress
from mmjax.parallel import distributed


class MetricLogger:
    """Writes one JSON line an epoch, the same numbers to TensorBoard, and progress for people; of
    several processes only the first does.

    Of a workdir in a bucket, whose objects do not grow, they are kept aside and copied whole by
    `keep`.
    """

    def __init__(self, workdir: Path, total: int, done: int = 0):
        """Goes on after `done` epochs; lines of later epochs, from before a kill, are dropped."""
        self._writes = distributed.is_primary()
        self._progress = Progress("epoch", total, unit="epoch", done=done, silent=not self._writes)
        if not self._writes:
            return
        from tensorboardX import SummaryWriter  # imports torch where that is installed: seconds

        self._workdir, self._aside = workdir, None
        folder = workdir
        if storage.remote(workdir):
            self._aside = tempfile.TemporaryDirectory()
            folder = Path(self._aside.name)
        kept = [
            line for line in _lines(workdir / "metrics.jsonl") if json.loads(line)["epoch"] <= done
        ]
        files.write_bytes(folder / "metrics.jsonl", "".join(kept).encode())
        self._lines = open(folder / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def epoch(self, epoch: int, record: dict[str, Any], say: str) -> None:
        """Records one epoch, lists (a value a trial) as lines only; `say` is short, for people."""
        if not self._writes:
            return
        self._lines.write(json.dumps({"epoch": epoch, **record}) + "\n")
        self._lines.flush()
        for name, value in record.items():
            if isinstance(value, list):
                continue
            self._board.add_scalar(name.replace("@", "_"), value, epoch)
        self._progress.add(epoch - self._progress.done, say)

    def keep(self) -> None:
        """Returns when all that was said is where a run that goes on will look for it."""
        if self._writes and self._aside is not None:
            self._board.flush()
            files.copy(Path(self._aside.name), self._workdir, last="metrics.jsonl")

    def __enter__(self) -> "MetricLogger":
        return self

    def __exit__(self, *failure: Any) -> None:
        if self._writes:
            self.keep()
            self._lines.close()
            self._board.close()
            if self._aside is not None:
                self._aside.cleanup()
        self._progress.__exit__(*failure)


def _lines(path: Path) -> list[str]:
    """The whole lines of a file; a last line cut off by a kill is left out."""
    if not files.exists(path):
        return []
    return [
        line
        for line in files.read_bytes(path).decode().splitlines(keepends=True)
        if line.endswith("\n")
    ]


def versions(*names: str) -> dict[str, Any]:
    """Versions of the packages that numbers depend on."""
    found = {name: metadata.version(name) for name in names}
    return {"python": sys.version.split()[0], **found}
