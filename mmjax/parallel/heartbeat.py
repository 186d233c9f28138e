"""Hearing that another process hangs, and saying so before JAX aborts this one without a word.

JAX notices a dead process by its closed connections, and one that was stopped, or whose host is
gone, after a silence; its own end is then an abort. Here every process says that it is there by a
number in the key-value store of `jax.distributed` and reads the others'.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

PLACE = "mmjax/beat/"


class Heartbeat:
    """A thread that calls `lost` with a few words about who is silent, once, if anybody is.

    Args:
      client: of `jax.distributed`; any object with its `key_value_set` and `key_value_dir_get`.
      own: the number of this process of `count`.
      seconds: of silence that mean a process hangs; also how long the store may take to answer,
        which lies in the first process.
    """

    def __init__(
        self, client: Any, own: int, count: int, seconds: float, lost: Callable[[str], None]
    ):
        self._client, self._own, self._seconds, self._lost = client, own, seconds, lost
        now = time.monotonic()
        self._heard = {n: ("", now) for n in range(count) if n != own}  # what each said last, when
        self._answered, self._leaving, self._stopped = now, False, threading.Event()
        self._threads = [
            threading.Thread(target=work, daemon=True, name="heartbeat")
            for work in (self._beat, self._judge)
        ]

    def start(self) -> None:
        """Begin to beat and to judge."""
        for thread in self._threads:
            thread.start()

    def leave(self) -> None:
        """Judge nobody any more: from now on others may end at any moment."""
        self._leaving = True

    def stop(self) -> None:
        """End both threads, so that none waits for the store while Python is taken down.

        A thread that is in C++ then cannot come back and aborts the process. One that the store
        keeps for longer than a silence may last is given up.
        """
        self._leaving = True
        self._stopped.set()
        for thread in self._threads:
            thread.join(self._seconds)

    def _beat(self) -> None:
        number = 0
        while not self._stopped.is_set():
            try:
                self._client.key_value_set(f"{PLACE}{self._own}", str(number), True)
                found = dict(self._client.key_value_dir_get(PLACE))
            except Exception:  # the first process is gone, which is what `_judge` will see
                found = {}
            now, number = time.monotonic(), number + 1
            for other, (said, _) in self._heard.items():
                saying = found.get(f"{PLACE}{other}", said)
                if saying != said:
                    self._heard[other] = saying, now
            if found:
                self._answered = now
            self._stopped.wait(self._seconds / 6)

    def _judge(self) -> None:
        """By another thread, since a question to a first process that hangs is never answered."""
        before = time.monotonic()
        while not self._leaving:
            self._stopped.wait(self._seconds / 6)
            now = time.monotonic()
            if now - before > self._seconds / 2:  # it was this process that was stopped
                self._answered = now
                self._heard = {other: (said, now) for other, (said, _) in self._heard.items()}
            before = now
            heard = self._heard.items()  # of others only as much is known as the store has told
            silent = [str(n) for n, (_, when) in heard if self._answered - when > self._seconds]
            if now - self._answered > self._seconds:
                silent = ["0"]
            if silent and not self._leaving:
                self._lost(f"process {', '.join(silent)} said nothing for {self._seconds:g} s")
                return
