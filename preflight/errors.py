"""Errors that a user can act on: a sentence, a hint and the exit code; the command line prints them, no traceback."""

EXIT_CLEARED = 0
EXIT_INTERNAL = 1
EXIT_USAGE = 2
EXIT_NOT_CLEARED = 3
EXIT_WARNINGS = 4
EXIT_WATCH_STOPPED = 5
EXIT_INTERRUPTED = 130


class PreflightError(Exception):
    """Something the user can mend.

    Args:
        message: One sentence that says what is wrong, naming the file, key or value.
        hint: What to do about it; may name a command.
    """

    exit_code = EXIT_NOT_CLEARED

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type, tuple[str, str | None]]:
        # Loader workers send their exceptions through a pipe; the default would drop the hint.
        return type(self), (self.message, self.hint)


class UsageError(PreflightError):
    """A wrong word on the command line or in a configuration: exit code 2."""

    exit_code = EXIT_USAGE


class DataError(PreflightError):
    """A dataset that is missing, damaged or not what the run asks for: exit code 3."""


class NotCovered(PreflightError):  # noqa: N818 - no error, a limit of what is looked at
    """Something that exists and that preflight cannot look at: a check of it is skipped, with this reason."""
