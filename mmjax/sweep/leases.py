"""Task leases as files, for processes on hosts that share a folder.

A lease is one file per task, and one process holds it. A holder touches its leases now and then.
A lease that was not touched for `expiry` seconds, or whose process is gone from this host, may be
taken over. Time is the file server's, read off a file that is touched for it, so hosts' clocks may
differ.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from mmjax.sweep.ledger import me


class Leases:
    """Leases in one folder.

    `locked` is the lock under which they are taken.
    """

    def __init__(
        self, folder: Path, locked: Callable[[], AbstractContextManager], expiry: float = 300.0
    ):
        self.folder, self.expiry, self._locked = Path(folder), expiry, locked
        self.folder.mkdir(parents=True, exist_ok=True)

    def take(self, names: Sequence[str], most: int) -> list[str]:
        """Take at most `most` of the names that are free or abandoned.

        Returns:
          The names that this process now holds.
        """
        mine: list[str] = []
        with self._locked():
            for name in names:
                if len(mine) < most and not self.held(name):
                    (self.folder / name).write_text(me())
                    mine.append(name)
        return mine

    @contextlib.contextmanager
    def kept(self, names: Sequence[str]) -> Iterator[None]:
        """Touch leases while the block runs, then release them.

        Only those that this process still holds are released.
        """
        stop = threading.Event()

        def touch() -> None:
            while not stop.wait(self.expiry / 4):
                for name in names:
                    with contextlib.suppress(OSError):
                        os.utime(self.folder / name)

        thread = threading.Thread(target=touch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self.release(names)

    def release(self, names: Sequence[str]) -> None:
        """Release those of the names that this process still holds."""
        for name in filter(self.mine, names):
            (self.folder / name).unlink(missing_ok=True)

    def mine(self, name: str) -> bool:
        """Return True if this process holds the lease.

        A process that slept too long may have lost it.
        """
        return self._holder(name) == me()

    def held(self, name: str) -> bool:
        """Return True if a process that seems alive holds the lease.

        A process on another host seems alive until its lease expires.
        """
        try:
            touched = (self.folder / name).stat().st_mtime
        except FileNotFoundError:
            return False
        here, _, _ = me().rpartition(":")
        host, _, process = self._holder(name).rpartition(":")
        if host == here and not _alive(int(process)):
            return False
        return self._now() - touched < self.expiry

    def _holder(self, name: str) -> str:
        try:
            return (self.folder / name).read_text()
        except FileNotFoundError:
            return ""

    def _now(self) -> float:
        clock = self.folder / f".clock.{me()}"
        clock.touch()
        now = clock.stat().st_mtime
        clock.unlink()
        return now


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # the process is another user's
        return True
    return True
