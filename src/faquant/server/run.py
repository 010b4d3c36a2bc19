"""Runs the server in this process: signals and shutdown."""

import contextlib
import os
import resource
import signal
import socket
import threading
from types import FrameType

import uvicorn

from .app import make_app
from .http.connection import Connection
from .http.socket import unavailable
from .operate.logs import log_to_stderr
from .service import Service

BACKLOG = 1024
LAST_SECONDS = 10
"""Time for connections that still send when all answers are finished, and the same again for busy threads."""


def serve(service: Service, listener: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT. The first signal lets the admitted requests finish; a second one ends at once.

    Raises:
        FaquantError: another program listens on the address.
    """
    log_to_stderr()
    _raise_file_limit()
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        host, port = listener.getsockname()[:2]
        raise unavailable(host, port, error) from None
    config = uvicorn.Config(
        make_app(service),
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=LAST_SECONDS,
    )
    # For the time after uvicorn removes its handlers, while Python waits for threads.
    for kind in (signal.SIGTERM, signal.SIGINT):
        signal.signal(kind, _exit_now)
    service.engine.start()
    try:
        _Server(config, service).run([listener])
    finally:
        service.engine.shutdown(timeout=LAST_SECONDS)


class _Server(uvicorn.Server):
    """uvicorn closes its socket on shutdown; this one answers 503 until the last answer is finished."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._gate = service.gate

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._gate.closed:
            _exit_now(sig, frame)
        self._gate.closed = True
        _print(f"shutting down on {signal.Signals(sig).name}, after the {self._gate.inside} answers in progress")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Python would wait for threads that compile or tokenize, although their results are not needed any more.
        end = threading.Timer(2 * LAST_SECONDS, os._exit, [0])
        end.daemon = True
        end.start()
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or (self._gate.closed and self._gate.inside == 0)


def _raise_file_limit() -> None:
    """Raise the limit of open files, of which each connection is one, from the default of often 1024 to the maximum."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _exit_now(sig: int, frame: FrameType | None) -> None:
    _print(f"terminated by a second {signal.Signals(sig).name}")
    os._exit(128 + sig)  # the engine's thread may be in a long step


def _print(text: str) -> None:
    # Not sys.stderr, which may be in use when the signal arrives.
    os.write(2, f"faquant: {text}.\n".encode())
