"""Calling the scripts as a user does, and what they are made of."""

import importlib
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from absl import flags

ROOT = Path(__file__).resolve().parents[2]


def script(name, *arguments, devices=1):
    """A finished process of scripts/NAME on so many CPU devices."""
    flags = f"--xla_force_host_platform_device_count={devices}" if devices > 1 else ""
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / name), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        check=False,
    )


def imported(name):
    """A module of scripts/, whose flags are its own: another script's may have the same names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        patch.setattr(flags, "FLAGS", flags.FlagValues())
        for define in [text for text in dir(flags) if text.startswith("DEFINE")]:
            patch.setattr(flags, define, partial(getattr(flags, define), flag_values=flags.FLAGS))
        return importlib.import_module(name)
