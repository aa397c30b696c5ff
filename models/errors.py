"""What goes wrong on the user's side. Free of heavy imports, so that a typo is answered at once."""

import sys


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one line: what, where, and what to try."""


class CheckpointError(InputError):
    """A checkpoint that cannot be used."""


class InputWarning(UserWarning):
    """Something the user should know although the work went on; the command line prints it as one line."""


def reason(error: Exception) -> str:
    """What an exception says, on one line."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).split("\n")[0]


def print_error(message) -> None:
    """One line on standard error."""
    print(f"错误: {' '.join(str(message).split())}", file=sys.stderr)
