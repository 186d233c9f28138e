"""Check names that users give and suggest the nearest one."""

import difflib
from collections.abc import Iterable

from mmjax.core.errors import InputError


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the end of an error sentence about an unknown name."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"


def choice(name: str, value: str, allowed: Iterable[str]) -> str:
    """Return `value` if it is one of `allowed`.

    Raises:
      InputError: it is not.
    """
    if value not in allowed:
        raise InputError(f"{name}={value!r}{suggestion(value, allowed)}")
    return value
