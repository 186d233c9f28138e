"""Calling the scripts as a user does, and what they are made of."""

import importlib
import os
import subprocess
from functools import partial
from pathlib import Path

import pytest
from absl import flags

from support import forks

ROOT = Path(__file__).resolve().parents[2]


_parents: dict[tuple, forks.Scripts] = {}  # by environment, the last ones used
MOST = 3


def script(name, *arguments, devices=1):
    """Return the finished process of scripts/NAME on so many CPU devices.

    Processes of one environment are forks of one that has imported JAX.
    """
    flags = f"--xla_force_host_platform_device_count={devices}" if devices > 1 else ""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    environment.pop("PYTEST_CURRENT_TEST", None)
    key = tuple(sorted(environment.items()))
    parent = _parents.pop(key, None) or forks.Scripts(environment)
    while len(_parents) >= MOST:
        _parents.pop(next(iter(_parents))).__exit__()
    _parents[key] = parent
    done = parent(name, *arguments)
    return subprocess.CompletedProcess([name, *arguments], done.code, done.out, done.err)


def imported(name):
    """A module of scripts/, whose flags are its own: another script's may have the same names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        patch.setattr(flags, "FLAGS", flags.FlagValues())
        for define in [text for text in dir(flags) if text.startswith("DEFINE")]:
            patch.setattr(flags, define, partial(getattr(flags, define), flag_values=flags.FLAGS))
        return importlib.import_module(name)
