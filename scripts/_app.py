"""Parse flags, report errors and set exit codes for every script.

It also puts the repository on the path. An error of the user's input becomes one sentence.
"""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mmjax.core.errors import InputError, Preempted

PREEMPTED = 75  # exit status of a run that saved when asked to end: start it again
_positional: list[str] = []

COORDINATOR = flags.DEFINE_string(
    "coordinator", os.environ.get("JAX_COORDINATOR_ADDRESS", ""), "HOST:PORT of process 0."
)
PROCESSES = flags.DEFINE_integer(
    "processes", int(os.environ.get("JAX_NUM_PROCESSES", 0)), "How many run this together."
)
PROCESS = flags.DEFINE_integer(
    "process", int(os.environ.get("JAX_PROCESS_ID", -1)), "Which of them this is, from 0."
)
COMPILE_CACHE = flags.DEFINE_string(
    "compile_cache", "", "Folder that keeps compiled programs for the next start."
)
JOIN_SECONDS = flags.DEFINE_integer("join_seconds", 120, "How long to wait for the others.", 1)


def arguments() -> list[str]:
    """Return the words on the command line that are no flags."""
    return _positional


def run(main: Callable[[], None], *, words: bool = False, processes: str = "") -> None:
    """Parse the flags and call `main`.

    An InputError becomes one sentence and exit status 2. Words that are no flags are refused unless
    the script takes `words`: they would be typos.

    Where a launcher or flags start several processes, each runs `main` as a part of one program
    (`processes` "joined") or as a worker that shares a folder with the others ("workers"). By
    default a script refuses to be started several times.
    """

    def call(argv: list[str]) -> None:
        _positional[:] = argv[1:]
        if _positional and not words:
            _stop(f"{_positional[0]!r} is no flag; give --NAME=VALUE, see --help")
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # orbax logs dozens of lines a checkpoint
        try:
            if COMPILE_CACHE.value:
                _keep_programs()
            if processes != "workers":
                _join(processes == "joined")
            main()
        except InputError as error:
            _stop(str(error))
        except PermissionError as error:
            _stop(f"{error.filename}: {error.strerror}; check who owns it")
        except Preempted as notice:
            print(f"stopped: {notice}; the same command goes on", file=sys.stderr)
            sys.exit(PREEMPTED)
        except KeyboardInterrupt:
            sys.exit(130)
        except Exception as error:
            _lost(error)
            raise

    app.run(call, flags_parser=_parse)


def _keep_programs() -> None:
    from mmjax.parallel import compile_cache

    compile_cache.keep(COMPILE_CACHE.value)


def _join(several: bool) -> None:
    from mmjax.parallel import distributed

    if not COORDINATOR.value and not distributed.launched():
        return
    if not several:
        raise InputError("this script is a single process; start it once, without a launcher")
    address = (COORDINATOR.value, PROCESSES.value, PROCESS.value)
    distributed.join(*address, seconds=JOIN_SECONDS.value)
    if not distributed.is_primary():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)


def _lost(error: Exception) -> None:
    """End this process if the other processes do not answer.

    It does so only as one of several processes, and only if the error comes from their silence.
    """
    jax = sys.modules.get("jax")
    if jax is None or not isinstance(error, jax.errors.JaxRuntimeError):
        return
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        from mmjax.parallel import distributed

        distributed.abort(str(error).splitlines()[0][:200])


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        text = str(error).replace("\\n", "\n")
        missing = re.search(r"Flag (--\w+) must have a value other than None", text)
        if missing:
            _stop(f"{missing[1]} is missing; see --help")
        # An error inside a config file arrives as a traceback, whose last line has the message.
        prefix, _, trace = text.partition("Error whilst parsing config file:")
        last = re.sub(r"^\w+: ", "", trace.strip().splitlines()[-1]) if trace else ""
        _stop(_unknown_key(argv) or f"{prefix}{last}")


def _unknown_key(argv: list[str]) -> str | None:
    """Return the sentence about an unknown --config.KEY, if any.

    It is unknown if the config file does not have it.
    """
    match = re.search(r"(?:^|\n)--?config[=\n](.*)", "\n".join(argv))
    keys = re.findall(r"(?:^|\n)--?config\.([\w.]+)", "\n".join(argv))
    if not match or not keys or not Path(match[1].split(":")[0]).exists():
        return None
    from mmjax.core.names import suggestion
    from mmjax.training.settings import flatten

    try:
        known = flatten(flags.FLAGS["config"].parser.parse(match[1]).to_dict())
    except (ValueError, TypeError, OSError):
        return None
    unknown = [key for key in keys if key not in known and key != "model"]
    if not unknown:
        return None
    return f"--config.{unknown[0]}: no such key{suggestion(unknown[0], known)}"


def _stop(text: str) -> NoReturn:
    print("error:", " ".join(text.split()), file=sys.stderr)
    sys.exit(2)
