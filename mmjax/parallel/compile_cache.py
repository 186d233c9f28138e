"""Cache compiled XLA programs on disk and count them.

The cache on disk outlives a process, so later processes reuse its programs.
"""

from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

COMPILED = "/jax/core/compile/backend_compile_duration"  # also where the cache had it
FROM_CACHE = "/jax/compilation_cache/cache_hits"


def keep(folder: str | Path) -> None:
    """Cache every compiled program in a folder.

    Programs that the folder already holds are not compiled again.
    """
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    compilation_cache.reset_cache()  # it may be open on another folder


class Count:
    """Counter of compiled programs and cache hits within a `with` block.

    It counts the programs of this process; `programs` includes those that the cache had.
    """

    def __init__(self) -> None:
        self.programs = self.from_cache = 0

    def __enter__(self) -> "Count":
        jax.monitoring.register_event_duration_secs_listener(self._compiled)
        jax.monitoring.register_event_listener(self._found)
        return self

    def __exit__(self, *_: Any) -> None:
        jax.monitoring.unregister_event_duration_listener(self._compiled)
        jax.monitoring.unregister_event_listener(self._found)

    def _compiled(self, event: str, duration_secs: float, **_: Any) -> None:
        self.programs += event == COMPILED

    def _found(self, event: str, **_: Any) -> None:
        self.from_cache += event == FROM_CACHE
