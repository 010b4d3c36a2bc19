"""Signal handling of the commands: end at once, or raise an exception once there is something to clean up."""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType

INTERRUPTED = 128 + signal.SIGINT
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def exit_on_signals() -> None:
    """Let SIGINT, SIGTERM and SIGHUP end the process at once, until `raise_on_signals` is called.

    An exception could be lost during an import: libraries catch exceptions there, and torch's C++ drops them or aborts.
    """
    _handle(_end)


def raise_on_signals() -> None:
    """Turn these signals into exceptions, so that incomplete files are removed or kept for the next run.

    Commands call this after their imports. Does nothing if `exit_on_signals` was not called.
    """
    if any(signal.getsignal(number) is _end for number in _SIGNALS):
        _handle(_raise)


def print_interrupted() -> None:
    """Print a message on stderr, on a new line after a terminal's ^C."""
    line = "\nfaquant: Interrupted.\n" if os.isatty(2) else "faquant: Interrupted.\n"
    with suppress(OSError):
        os.write(2, line.encode())  # not sys.stderr, which may be in use when the signal arrives


def _handle(handler: "signal._HANDLER") -> None:
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # set by nohup, and by shells for background jobs
            signal.signal(number, handler)


def _end(number: int, _: FrameType | None) -> None:
    if number == signal.SIGINT:
        print_interrupted()
    os._exit(128 + number)


def _raise(number: int, _: FrameType | None) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)
