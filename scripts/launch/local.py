"""Runs a script as N processes on this machine that train together, as hosts of a pod would.

  python scripts/launch/local.py --processes=2 -- scripts/train.py --config=configs/vbpr.py ...

Everything behind `--` is the command, started N times with JAX_COORDINATOR_ADDRESS,
JAX_NUM_PROCESSES and JAX_PROCESS_ID set; lines of processes but the first begin with their number.
When one fails the others get `--grace` seconds to end by themselves. The exit status is the first
that is not 0. SIGTERM and SIGINT are passed on to all.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices", type=int, default=1, help="CPU devices of each process")
    parser.add_argument("--grace", type=float, default=60, help="seconds after a failure")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- SCRIPT FLAGS")
    given = parser.parse_args()
    command = given.command[given.command[:1] == ["--"] :]
    if not command or given.processes < 1:
        parser.error("give --processes=N -- SCRIPT FLAGS")
    port = _port()
    started = [start(n, given, command, port) for n in range(given.processes)]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: [one.send_signal(got) for one in started] and None)
    return wait(started, given.grace)


def start(
    number: int, given: argparse.Namespace, command: list[str], port: int
) -> subprocess.Popen:
    """One process, its output passed on line by line."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count="
    settings = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(given.processes),
        "JAX_PROCESS_ID": str(number),
        "XLA_FLAGS": f"{flags}{given.devices}",
    }
    one = subprocess.Popen(
        [sys.executable, *command],
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    threading.Thread(target=_pass_on, args=(one, number), daemon=True).start()
    return one


def wait(started: list[subprocess.Popen], grace: float) -> int:
    """The first exit status that is not 0, when all have ended."""
    failed, since = 0, None
    while any(one.poll() is None for one in started):
        ended = [one.poll() for one in started]
        failed = failed or next((code for code in ended if code), 0)
        if failed and since is None:
            since = time.monotonic()
        if since is not None and time.monotonic() - since > grace:
            for one in started:
                one.kill()
        time.sleep(0.05)
    failed = failed or next((code for one in started if (code := one.wait())), 0)
    return 128 - failed if failed < 0 else failed  # of a signal as shells say it


def _pass_on(one: subprocess.Popen, number: int) -> None:
    for line in one.stdout:
        sys.stdout.write(line if number == 0 else f"[{number}] {line}")
        sys.stdout.flush()


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
