"""Run a script as N processes on this machine.

  python scripts/launch/local.py --processes=2 -- scripts/train.py --config=configs/vbpr.py ...

They train jointly, as hosts of a pod would. Everything behind `--` is the command, started N times
with JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID set; lines of all processes but
the first begin with their number. When one fails the others get `--grace` seconds to end by
themselves. The exit status is the first that is not 0. SIGTERM and SIGINT are passed on to all.
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
    options = parser.parse_args()
    command = options.command[options.command[:1] == ["--"] :]
    if not command or options.processes < 1:
        parser.error("give --processes=N -- SCRIPT FLAGS")
    port = _port()
    started = [start(n, options, command, port) for n in range(options.processes)]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(
            number, lambda signum, _: [process.send_signal(signum) for process in started] and None
        )
    return wait(started, options.grace)


def start(
    number: int, given: argparse.Namespace, command: list[str], port: int
) -> subprocess.Popen:
    """Start one process and pass its output on line by line."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count="
    settings = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(given.processes),
        "JAX_PROCESS_ID": str(number),
        "XLA_FLAGS": f"{flags}{given.devices}",
    }
    process = subprocess.Popen(
        [sys.executable, *command],
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    threading.Thread(target=_pass_on, args=(process, number), daemon=True).start()
    return process


def wait(started: list[subprocess.Popen], grace: float) -> int:
    """Wait for all processes; return the first non-zero exit status.

    Those still running `grace` seconds after a failure are killed.
    """
    failed, since = 0, None
    while any(process.poll() is None for process in started):
        ended = [process.poll() for process in started]
        failed = failed or next((code for code in ended if code), 0)
        if failed and since is None:
            since = time.monotonic()
        if since is not None and time.monotonic() - since > grace:
            for process in started:
                process.kill()
        time.sleep(0.05)
    failed = failed or next((code for process in started if (code := process.wait())), 0)
    return 128 - failed if failed < 0 else failed  # a signal's status as shells report it


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
