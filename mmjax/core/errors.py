"""Exceptions for invalid user input and for preempted runs."""


class InputError(ValueError):
    """Fault in a file, a flag or a config of the user.

    The message is one sentence that says what is wrong, where, and what to do. Scripts print it
    without a traceback and exit with status 2; anything else is a bug and keeps its traceback.
    """


class Preempted(Exception):
    """End of a run by SIGTERM or a notice of the cloud.

    The run was saved; the same command resumes it.
    """
