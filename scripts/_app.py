"""What every script shares: the repository on the path, one-sentence errors, exit codes."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mmjax.errors import InputError

_positional: list[str] = []


def arguments() -> list[str]:
    """The words on the command line that are no flags."""
    return _positional


def run(main: Callable[[], None], *, words: bool = False) -> None:
    """Parses the flags and calls `main`; an InputError becomes one sentence and exit status 2.

    Words that are no flags are refused unless the script takes `words`: they would be typos.
    """

    def call(argv: list[str]) -> None:
        _positional[:] = argv[1:]
        if _positional and not words:
            _stop(f"{_positional[0]!r} is no flag; give --NAME=VALUE, see --help")
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # orbax says dozens of lines a checkpoint
        try:
            main()
        except InputError as error:
            _stop(str(error))
        except PermissionError as error:
            _stop(f"{error.filename}: {error.strerror}; check who owns it")
        except KeyboardInterrupt:
            sys.exit(130)

    app.run(call, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        text = str(error).replace("\\n", "\n")
        missing = re.search(r"Flag (--\w+) must have a value other than None", text)
        if missing:
            _stop(f"{missing[1]} is missing; see --help")
        # What is wrong inside a config file arrives as a whole traceback; its last line says it.
        about, _, trace = text.partition("Error whilst parsing config file:")
        last = re.sub(r"^\w+: ", "", trace.strip().splitlines()[-1]) if trace else ""
        _stop(_unknown_key(argv) or f"{about}{last}")


def _unknown_key(argv: list[str]) -> str | None:
    """The sentence about a --config.KEY that the config file does not have, if there is one."""
    found = re.search(r"(?:^|\n)--?config[=\n](.*)", "\n".join(argv))
    keys = re.findall(r"(?:^|\n)--?config\.([\w.]+)", "\n".join(argv))
    if not found or not keys or not Path(found[1].split(":")[0]).exists():
        return None
    from mmjax.recommenders.core import suggestion
    from mmjax.setup import flatten

    try:
        known = flatten(flags.FLAGS["config"].parser.parse(found[1]).to_dict())
    except (ValueError, TypeError, OSError):
        return None
    unknown = [key for key in keys if key not in known and key != "model"]
    if not unknown:
        return None
    return f"--config.{unknown[0]}: no such key{suggestion(unknown[0], known)}"


def _stop(text: str) -> NoReturn:
    print("error:", " ".join(text.split()), file=sys.stderr)
    sys.exit(2)
