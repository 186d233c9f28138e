"""Calling the scripts as a user does, and what they are made of."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


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
    """A module of scripts/, once in a process: its flags may not be defined again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        return importlib.import_module(name)
