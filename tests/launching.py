"""Starting scripts as several processes, and waiting for what they do."""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CPU = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}


def start(*command, **environment):
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=os.environ | CPU | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def together(count, command, devices=1):
    local = ("scripts/launch/local.py", f"--processes={count}", f"--devices={devices}")
    return start(*local, "--grace=40", "--", *command)


def finished(process, seconds=240):
    """Its exit status and what it said."""
    said, _ = process.communicate(timeout=seconds)
    return process.returncode, said


def until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)
