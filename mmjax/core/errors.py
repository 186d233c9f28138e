"""The one exception that means: what the user gave cannot be used."""


class InputError(ValueError):
    """A fault in a file, a flag or a config: one sentence that says what, where and what to do.

    Scripts print it without a traceback and exit with status 2; anything else is a bug and keeps
    its traceback.
    """


class Preempted(Exception):
    """SIGTERM, or the cloud's notice, ended a run after it was saved; the same command goes on."""
