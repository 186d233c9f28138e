"""Log a run to metrics.jsonl, TensorBoard and the terminal.

Progress is a bar on a terminal, and plain lines elsewhere.
"""

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
    """Logger of the metrics of each epoch.

    It writes one JSON line per epoch, the same numbers to TensorBoard, and progress for people. Of
    several processes only the first one logs.

    Objects in a bucket do not grow. So for a workdir in a bucket the files are in a temporary
    folder, and `keep` copies them as a whole.
    """

    def __init__(self, workdir: Path, total: int, done: int = 0):
        """Continue the log after `done` epochs.

        Lines of later epochs, from before a kill, are dropped.
        """
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
        """Record one epoch.

        Args:
          record: values by name. A list has one value per trial and is written to metrics.jsonl
            only.
          say: a short text for people.
        """
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
        """Copy the log to its workdir, if that is in a bucket.

        On return, all that was logged is where a resumed run will read it.
        """
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
    """Return the complete lines of a file.

    A last line that a kill cut off is left out.
    """
    if not files.exists(path):
        return []
    return [
        line
        for line in files.read_bytes(path).decode().splitlines(keepends=True)
        if line.endswith("\n")
    ]


def versions(*names: str) -> dict[str, Any]:
    """Return the versions of Python and of the named packages.

    Numbers depend on these packages.
    """
    packages = {name: metadata.version(name) for name in names}
    return {"python": sys.version.split()[0], **packages}
