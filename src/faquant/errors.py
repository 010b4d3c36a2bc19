"""The errors a person can meet. Every message says what is wrong, where, and how to mend it."""


class FaquantError(Exception):
    """Base of all errors that are reported as one paragraph without a traceback."""

    exit_status = 1


class UsageError(FaquantError):
    """A command, an option or an argument makes no sense; nothing was read or written.

    field: of a request's fields the one to blame, where that is known.
    """

    exit_status = 2

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class CheckpointError(FaquantError):
    """A checkpoint directory, or a file in it, is missing, damaged, or contradicts itself."""


class UnsupportedError(FaquantError):
    """The input is sound, but this program cannot do what it asks for."""


class OutputError(FaquantError):
    """The result could not be written; nothing that loads was left behind."""
