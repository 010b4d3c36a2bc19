"""How a command ends by a signal: at once, or by an exception once it has something to put in order."""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType

INTERRUPTED = 128 + signal.SIGINT
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end_at_once() -> None:
    """Until `raise_from_now_on`, SIGINT, SIGTERM and SIGHUP end the process as soon as Python sees them.

    An exception would be lost in an import: libraries catch what comes up there, torch's C++ drops it or aborts.
    """
    _handle(_end)


def raise_from_now_on() -> None:
    """These signals become exceptions, so that what is half written is removed or kept for the next run.

    For commands, once they have imported what they need; does nothing where `end_at_once` was not called.
    """
    if any(signal.getsignal(number) is _end for number in _SIGNALS):
        _handle(_raise)


def say_interrupted() -> None:
    """On stderr, behind the ^C of a terminal."""
    line = "\nfaquant: Interrupted.\n" if os.isatty(2) else "faquant: Interrupted.\n"
    with suppress(OSError):
        os.write(2, line.encode())  # not by sys.stderr: a signal may come while something is written there


def _handle(handler: "signal._HANDLER") -> None:
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup, and a shell in the background, have it
            signal.signal(number, handler)


def _end(number: int, _: FrameType | None) -> None:
    if number == signal.SIGINT:
        say_interrupted()
    os._exit(128 + number)


def _raise(number: int, _: FrameType | None) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)
