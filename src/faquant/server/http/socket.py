"""The address that a server listens at."""

import errno
import socket
from ipaddress import ip_address

from ...errors import FaquantError, UsageError


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
        raise unavailable(host, port, error) from None
    return listener


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches that address. Raises: ValueError: it is no address."""
    return ip_address(address.split("%")[0]).is_loopback


def unavailable(host: str, port: int, error: OSError) -> FaquantError:
    """What a person is told who wants an address that is not to be had."""
    flag = "--host" if error.errno == errno.EADDRNOTAVAIL else "--port"
    return FaquantError(f"Cannot listen at {host} port {port}: {error.strerror}. Choose another with {flag}.")
