"""A server in this process: its socket, its signals, its end."""

import os
import signal
import socket
from types import FrameType

import uvicorn

from ..errors import FaquantError, UsageError
from .app import make_app
from .logs import log_to_stderr
from .service import Service

BACKLOG = 1024
LAST_SECONDS = 10
"""For connections that are still sending when all answers are finished."""


def bind(host: str, port: int) -> socket.socket:
    """A socket at this address, on which nobody is listened to yet.

    Raises:
        UsageError: there is no such address.
        FaquantError: another program has it, or this one may not.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"--port must be from 0 (any that is free) to 65535, not {port}.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host {host!r} is no address of this machine: {error}.") from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _unavailable(host, port, error) from None
    return listener


def serve(service: Service, listener: socket.socket) -> None:
    """Answer until SIGTERM or SIGINT. The first lets everybody who was let in have their answer; a second ends it now.

    Raises:
        FaquantError: another program has come to listen at the address.
    """
    log_to_stderr()
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        host, port = listener.getsockname()[:2]
        raise _unavailable(host, port, error) from None
    config = uvicorn.Config(
        make_app(service),
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=LAST_SECONDS,
    )
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
            _say(f"ended by a second {signal.Signals(sig).name}")
            os._exit(128 + sig)  # the engine's thread may be in a long step
        self._gate.closed = True
        _say(f"{signal.Signals(sig).name}: {self._gate.inside} answers are finished first")

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or (self._gate.closed and self._gate.inside == 0)


def _say(text: str) -> None:
    # Not by sys.stderr: a signal may come while something is written there.
    os.write(2, f"faquant: {text}.\n".encode())


def _unavailable(host: str, port: int, error: OSError) -> FaquantError:
    return FaquantError(f"Cannot listen at {host} port {port}: {error.strerror}. Choose another with --port.")
