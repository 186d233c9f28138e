"""Who is doing what: a file a task, held by one process among many hosts on one folder.

A holder touches its leases now and then. One that was not touched for `expiry` seconds, or whose
process is gone from this host, may be taken over. Time is the file server's, read off a file that
is touched for it, so hosts' clocks may differ.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from mmjax.sweep.ledger import me


class Leases:
    """Leases in one folder; `locked` is the lock under which they are taken."""

    def __init__(
        self, folder: Path, locked: Callable[[], AbstractContextManager], expiry: float = 300.0
    ):
        self.folder, self.expiry, self._locked = Path(folder), expiry, locked
        self.folder.mkdir(parents=True, exist_ok=True)

    def take(self, names: Sequence[str], most: int) -> list[str]:
        """At most so many of the names, free or abandoned, that this process now holds."""
        mine: list[str] = []
        with self._locked():
            for name in names:
                if len(mine) < most and not self.held(name):
                    (self.folder / name).write_text(me())
                    mine.append(name)
        return mine

    @contextlib.contextmanager
    def kept(self, names: Sequence[str]) -> Iterator[None]:
        """Touches leases while the block runs, and gives back at its end those still held."""
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
        """Gives back those of the names that this process still holds."""
        for name in filter(self.mine, names):
            (self.folder / name).unlink(missing_ok=True)

    def mine(self, name: str) -> bool:
        """Whether this process holds it: one that slept too long may have lost it."""
        return self._holder(name) == me()

    def held(self, name: str) -> bool:
        """Whether somebody, alive as far as one can see from here, holds it."""
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
    except PermissionError:  # another user's
        return True
    return True
