"""The socket that the server listens on."""

import errno
import socket
from ipaddress import ip_address

from ...errors import FaquantError, UsageError


def bind(host: str, port: int) -> socket.socket:
    """Bind a socket to this address, without listening yet.

    Raises:
        UsageError: the address does not exist.
        FaquantError: the address is in use, or not permitted.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"--port must be from 0 (any free port) to 65535, not {port}.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host {host!r} is not an address of this machine: {error}.") from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise unavailable(host, port, error) from None
    return listener


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach an address. Raises: ValueError: it is not an address."""
    return ip_address(address.split("%")[0]).is_loopback


def unavailable(host: str, port: int, error: OSError) -> FaquantError:
    """The error for an address that cannot be bound."""
    flag = "--host" if error.errno == errno.EADDRNOTAVAIL else "--port"
    return FaquantError(f"Cannot listen on {host} port {port}: {error.strerror}. Choose another with {flag}.")
