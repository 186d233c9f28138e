"""Append-only event file of a sweep: ledger.jsonl.

Each line is one event:

    done     a trial's best value on validation, its epoch, the pack that trained it
    failed   a trial and the error that its own config caused
    chosen   a cell's point; the last one counts, and it is final once its test split was read
    tested   a trial whose test split was read; a trial has one

A line counts once it is whole. Several processes and hosts append under a file lock. If a kill or a
full disk cut off the last line, the next process to append drops it.
"""

import fcntl
import json
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mmjax.core.errors import InputError

Line = dict[str, Any]


class Ledger:
    """Events of one workdir by kind.

    `refresh` reads the events that others have added.
    """

    def __init__(self, workdir: Path):
        self.path = Path(workdir) / "ledger.jsonl"
        self.done: dict[str, Line] = {}  # by trial
        self.failed: dict[str, Line] = {}  # by trial
        self.chosen: dict[str, Line] = {}  # by cell
        self.tested: dict[str, Line] = {}  # by trial
        self._read, self._lines = 0, 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.refresh()

    def refresh(self) -> None:
        """Read the lines that were added since the last time.

        Raises:
          InputError: a line, not the last, that is no event.
        """
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            file.seek(self._read)
            added = file.read()
        lines = added[: added.rfind(b"\n") + 1].splitlines(keepends=True)
        for index, line in enumerate(lines):
            try:
                event = json.loads(line)
                key = event["cell" if event["event"] == "chosen" else "trial"]
                getattr(self, event["event"])[key] = event
            except (ValueError, KeyError, TypeError, AttributeError):
                if index == len(lines) - 1:  # the next to append drops it
                    return
                raise InputError(
                    f"{self.path}: line {self._lines + 1} is damaged; remove that line, its trial "
                    "runs again"
                ) from None
            self._read += len(line)
            self._lines += 1

    def append(self, events: Iterable[Line]) -> None:
        """Append events in one write, on disk when this returns.

        Events that the ledger has are not repeated, so that a process that comes second with the
        same trial or choice changes nothing.

        Raises:
          InputError: the disk is full or the folder cannot be written; nothing is added then.
        """
        stamp = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "by": me()}
        with self.locked():
            size = self._whole()
            new = [event for event in events if not self._has(event)]
            text = "".join(json.dumps(event | stamp, allow_nan=False) + "\n" for event in new)
            try:
                with open(self.path, "ab") as file:
                    file.write(text.encode())
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                self._cut(size)
                raise InputError(
                    f"{self.path} cannot be written ({error.strerror}); make room and run the same "
                    "command again"
                ) from None
        self.refresh()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the sweep's lock against other processes and hosts."""
        try:
            lock = open(self.path.with_name(".ledger.lock"), "a")  # noqa: SIM115
        except OSError as error:
            raise InputError(f"{self.path} cannot be written ({error.strerror})") from None
        with lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)
            yield

    def _has(self, event: Line) -> bool:
        """Return True if the event is in the ledger.

        A choice may change and a trial fail again.
        """
        if event["event"] == "chosen":
            return self.chosen.get(event["cell"], {}).get("trial") == event["trial"]
        return event["event"] != "failed" and event["trial"] in getattr(self, event["event"])

    def _whole(self) -> int:
        """Return the bytes of the whole lines.

        A line that a kill cut off is dropped, and a message printed.
        """
        self.refresh()
        if self.path.exists() and self.path.stat().st_size > self._read:
            print(f"{self.path}: dropped its last line, which is damaged", flush=True)
            self._cut(self._read)
        return self._read

    def _cut(self, size: int) -> None:
        if self.path.exists():
            os.truncate(self.path, size)


def me() -> str:
    """Return this process's name among those that share a workdir."""
    return f"{socket.gethostname()}:{os.getpid()}"
