"""What a server is made with, and the limits that no flag changes."""

import re
from dataclasses import dataclass

from ..errors import UsageError
from ..structured.tools.formats import FORMATS

MAX_MESSAGES = 2048
MAX_TEXT = 1 << 20
"""Characters of one message or prompt."""
MAX_PROMPTS = 128
"""Of one request for completions."""
MAX_CHOICES = 128
MAX_TOOL_CALLS = 128
"""Of one message."""
MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
"""Tokens of one request."""


@dataclass(frozen=True)
class ServerConfig:
    """Checked when it is made.

    served_model_name: what requests call the model.
    api_key: what clients must show as `Authorization: Bearer …`; None: nothing.
    allowed_origins: of the web pages that may call the server; `*` is all.
    allowed_hosts: what requests may call the server, beside localhost and loopback addresses; None or `*`: anything.
    max_queue: sequences that may wait beside those that are answered; who comes then is told to come later.
    request_timeout: seconds from a request to the end of its answer; 0: no limit.
    max_body: bytes of a request.
    tool_call_parser: how the model writes calls of tools, a name of tools.formats.FORMATS; auto: as its template says.

    Raises:
        UsageError: a value is outside its range.
    """

    served_model_name: str
    api_key: str | None = None
    allowed_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] | None = None
    max_queue: int = 256
    request_timeout: float = 600.0
    max_body: int = 8 << 20
    tool_call_parser: str = "auto"

    def __post_init__(self) -> None:
        if not self.served_model_name or not self.served_model_name.isprintable():
            raise UsageError("served_model_name must be a name of printable characters.")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            raise UsageError("api_key must be printable ASCII characters, at least one; leave it out for none.")
        if not 0 <= self.max_queue <= 2**20:
            raise UsageError(f"max_queue must be from 0 to {2**20}, not {self.max_queue}.")
        if not 0 <= self.request_timeout <= 1e9:
            raise UsageError(f"request_timeout must be a number of seconds from 0 on, not {self.request_timeout}.")
        if not 1024 <= self.max_body <= 1 << 30:
            raise UsageError(f"max_body must be from 1024 to {1 << 30}, not {self.max_body}.")
        if self.tool_call_parser not in ("auto", *FORMATS):
            raise UsageError(f"tool_call_parser must be auto or one of {', '.join(FORMATS)}.")
        for origin in self.allowed_origins:
            if origin != "*" and not origin.startswith(("http://", "https://")):
                raise UsageError(f"{origin!r} is no origin; write one such as https://example.org, or * for all.")
        for host in self.allowed_hosts or ():
            if host != "*" and not re.fullmatch(r"[\w.-]+|[0-9A-Fa-f:.]+", host):
                raise UsageError(f"{host!r} is no host; write a name or an address, without a port.")
