"""A server in this process: its signals, its end."""

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
"""For connections that are still sending when all answers are finished, and as many for threads that still work."""


def serve(service: Service, listener: socket.socket) -> None:
    """Answer until SIGTERM or SIGINT. The first lets everybody who was let in have their answer; a second ends it now.

    Raises:
        FaquantError: another program has come to listen at the address.
    """
    log_to_stderr()
    _allow_files()
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
    # Once uvicorn's own have gone, while Python waits for threads.
    for kind in (signal.SIGTERM, signal.SIGINT):
        signal.signal(kind, _end_now)
    service.engine.start()
    try:
        _Server(config, service).run([listener])
    finally:
        service.engine.shutdown(timeout=LAST_SECONDS)


class _Server(uvicorn.Server):
    """uvicorn ends by closing its socket; this one answers 503 there until the last answer is finished."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._gate = service.gate

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._gate.closed:
            _end_now(sig, frame)
        self._gate.closed = True
        _say(f"ending on {signal.Signals(sig).name}, after {self._gate.inside} answers that are still being written")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Python waits for threads however long they compile or tokenize, though nobody waits for what comes of it.
        end = threading.Timer(2 * LAST_SECONDS, os._exit, [0])
        end.daemon = True
        end.start()
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or (self._gate.closed and self._gate.inside == 0)


def _allow_files() -> None:
    """Each connection is an open file, and what a process may have is often a thousand, though it may ask for more."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _end_now(sig: int, frame: FrameType | None) -> None:
    _say(f"ended by a second {signal.Signals(sig).name}")
    os._exit(128 + sig)  # the engine's thread may be in a long step


def _say(text: str) -> None:
    # Not by sys.stderr: a signal may come while something is written there.
    os.write(2, f"faquant: {text}.\n".encode())
