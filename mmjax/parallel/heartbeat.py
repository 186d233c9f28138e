"""Detect a hung process before JAX aborts this one silently.

JAX notices a dead process by its closed connections. It notices a process that was stopped, or
whose host is gone, after a silence, and then aborts this process. Here every process writes a
counter to the key-value store of `jax.distributed` and reads the counters of the others.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

PLACE = "mmjax/beat/"


class Heartbeat:
    """Two threads that detect silent processes and call `lost` once.

    Args:
      client: client of `jax.distributed`; any object with its `key_value_set` and
        `key_value_dir_get`.
      own: number of this process among `count` processes.
      seconds: silence after which a process counts as hung; also the longest time that the store,
        which lies in the first process, may take to answer.
      lost: called with a short text that names the silent processes.
    """

    def __init__(
        self, client: Any, own: int, count: int, seconds: float, lost: Callable[[str], None]
    ):
        self._client, self._own, self._seconds, self._lost = client, own, seconds, lost
        now = time.monotonic()
        self._heard = {n: ("", now) for n in range(count) if n != own}  # last counter and its time
        self._answered, self._leaving, self._stopped = now, False, threading.Event()
        self._threads = [
            threading.Thread(target=work, daemon=True, name="heartbeat")
            for work in (self._beat, self._judge)
        ]

    def start(self) -> None:
        """Start both threads."""
        for thread in self._threads:
            thread.start()

    def leave(self) -> None:
        """Stop judging, since others may now end at any moment."""
        self._leaving = True

    def stop(self) -> None:
        """End both threads before Python shuts down.

        No thread may wait for the store during the shutdown: a thread that is in C++ code then
        cannot return and aborts the process. A thread that the store blocks for longer than
        `seconds` is given up.
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
                counters = dict(self._client.key_value_dir_get(PLACE))
            except Exception:  # the first process is gone; `_judge` will report it
                counters = {}
            now, number = time.monotonic(), number + 1
            for index, (previous, _) in self._heard.items():
                current = counters.get(f"{PLACE}{index}", previous)
                if current != previous:
                    self._heard[index] = current, now
            if counters:
                self._answered = now
            self._stopped.wait(self._seconds / 6)

    def _judge(self) -> None:
        """Call `lost` if a process is silent for too long.

        It needs a second thread, since a query to a first process that hangs is never answered.
        """
        last_check = time.monotonic()
        while not self._leaving:
            self._stopped.wait(self._seconds / 6)
            now = time.monotonic()
            if now - last_check > self._seconds / 2:  # it was this process that was stopped
                self._answered = now
                self._heard = {index: (counter, now) for index, (counter, _) in self._heard.items()}
            last_check = now
            heard = self._heard.items()  # known only up to the store's last answer
            silent = [str(n) for n, (_, when) in heard if self._answered - when > self._seconds]
            if now - self._answered > self._seconds:
                silent = ["0"]
            if silent and not self._leaving:
                self._lost(f"process {', '.join(silent)} said nothing for {self._seconds:g} s")
                return
