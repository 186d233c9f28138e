"""Hearing that another process hangs, and saying so before JAX aborts this one without a word.

JAX notices a dead process by its closed connections, and one that was stopped, or whose host is
gone, after a silence; its own end is then an abort. Here every process says that it is there by a
number in the key-value store of `jax.distributed`, reads the next one's, and tells all if that is
silent: so many processes cost the store a few requests each, not one for every two of them.
"""

import atexit
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

PLACE = "mmjax/beat/"
SILENT = "mmjax/silent/"


class Heartbeat:
    """A thread that calls `lost` with a few words about who is silent, once, if anybody is.

    Args:
      client: of `jax.distributed`; any object with its `key_value_set` and `key_value_dir_get`.
      own: the number of this process of `count`, at least two.
      seconds: of silence that mean a process hangs; also how long the store may take to answer,
        which lies in the first process.
    """

    def __init__(
        self, client: Any, own: int, count: int, seconds: float, lost: Callable[[str], None]
    ):
        self._client, self._seconds, self._lost = client, seconds, lost
        self._own, self._next = own, (own + 1) % count
        now = time.monotonic()
        self._heard = "", now  # what the next one said last, and when
        self._told = ""  # who is silent, by another's word
        self._answered, self._leaving = now, False

    def start(self) -> None:
        """Beats until this process ends; judges until it begins to."""
        atexit.register(self.leave)
        for work in (self._beat, self._judge):
            threading.Thread(target=work, daemon=True, name="heartbeat").start()

    def leave(self) -> None:
        """Others may end at any moment from now on."""
        self._leaving = True

    def _beat(self) -> None:
        number = 0
        while True:
            try:
                self._client.key_value_set(f"{PLACE}{self._own}/at", str(number), True)
                said = [v for _, v in self._client.key_value_dir_get(f"{PLACE}{self._next}/")]
                told = [v for _, v in self._client.key_value_dir_get(SILENT)]
            except Exception:  # the first process is gone, which is what `_judge` will see
                said = told = None
            now, number = time.monotonic(), number + 1
            if said is not None:
                self._answered, self._told = now, told[0] if told else ""
            if said and said[0] != self._heard[0]:
                self._heard = said[0], now
            time.sleep(self._seconds / 6)

    def _judge(self) -> None:
        """By another thread, since a question to a first process that hangs is never answered."""
        before = time.monotonic()
        while not self._leaving:
            time.sleep(self._seconds / 6)
            now = time.monotonic()
            if now - before > self._seconds / 2:  # it was this process that was stopped
                self._answered, self._heard = now, (self._heard[0], now)
            before, silent = now, self._told
            if now - self._answered > self._seconds:
                silent = "0"
            elif self._answered - self._heard[1] > self._seconds:  # as the store has told, no later
                silent = str(self._next)
                with contextlib.suppress(Exception):  # the first process goes at this very moment
                    self._client.key_value_set(f"{SILENT}{self._own}", silent, True)
            if silent and not self._leaving:
                self._lost(f"process {silent} said nothing for {self._seconds:g} s")
                return
