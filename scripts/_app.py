"""What every script shares: the repository on the path, one-sentence errors, exit codes."""

import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mmjax.errors import InputError

_positional: list[str] = []


def arguments() -> list[str]:
    """The words on the command line that are no flags."""
    return _positional


def run(main: Callable[[], None]) -> None:
    """Parses the flags and calls `main`; an InputError becomes one sentence and exit status 2."""

    def call(argv: list[str]) -> None:
        _positional[:] = argv[1:]
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # orbax says dozens of lines a checkpoint
        try:
            main()
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            sys.exit(130)

    app.run(call, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # ml_collections answers an unknown key with an AttributeError that carries a suggestion.
        text = " ".join(str(error).replace("\\n", " ").split()).strip("'\"")
        print(f"error: {text}", file=sys.stderr)
        sys.exit(2)
