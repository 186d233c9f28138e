"""Runs scripts as a user would, each in a process of its own, without importing JAX each time.

A child of this process imports what the scripts import, once, and forks for every call; the fork
runs the script as `__main__` with fresh flags, and its exit status is the script's.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PARENT = """
import json, os, runpy, sys, tempfile
import mmjax.training.train, mmjax.report.runs, mmjax.features.extraction.extract
import mmjax.data.prepare, ml_collections
for line in sys.stdin:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        folder, *sys.argv = json.loads(line)
        child = os.fork()
        if not child:  # whatever ends the script also ends this process, as it would its own
            os.chdir(folder)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.path.insert(0, os.path.dirname(sys.argv[0]))
            runpy.run_path(sys.argv[0], run_name="__main__")
            sys.exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode())
    print(json.dumps([code, *said]), flush=True)
"""


class Done(NamedTuple):
    code: int
    out: str
    err: str


class Scripts:
    """Call it with a script's name and arguments; a context manager."""

    def __init__(self, environment: dict[str, str]):
        self._parent = subprocess.Popen(
            [sys.executable, "-c", PARENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )

    def __call__(self, script: str, *arguments: object) -> Done:
        place = ROOT / "scripts" / script.removesuffix(".py")
        place = place if place.is_dir() else place.with_suffix(".py")
        words = [str(place), *map(str, arguments)]
        self._parent.stdin.write(json.dumps([os.getcwd(), *words]) + "\n")
        self._parent.stdin.flush()
        return Done(*json.loads(self._parent.stdout.readline()))

    def __enter__(self) -> "Scripts":
        return self

    def __exit__(self, *_: object) -> None:
        self._parent.stdin.close()
        self._parent.stdout.close()
        self._parent.wait()
