"""The errors that users see. Every message says what is wrong, where, and how to fix it."""


class FaquantError(Exception):
    """Base class of the errors that are reported as one paragraph without a traceback."""

    exit_status = 1


class UsageError(FaquantError):
    """A command, an option or an argument is invalid; nothing was read or written.

    field: the invalid field of a request, if known.
    """

    exit_status = 2

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class CheckpointError(FaquantError):
    """A checkpoint directory, or a file in it, is missing, damaged, or contradicts itself."""


class UnsupportedError(FaquantError):
    """The input is valid, but requires a feature that faquant does not support."""


class OutputError(FaquantError):
    """The result could not be written; nothing loadable was left behind."""


class AnswerError(FaquantError):
    """The model's answer does not have the required form."""


class DeviceError(FaquantError):
    """A device failed, and this process cannot use it any more."""
