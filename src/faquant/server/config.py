"""The server's configuration, and its fixed limits."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import UsageError
from ..structured.reasoning import PARSERS
from ..structured.tools.formats import FORMATS

MAX_MESSAGES = 2048
MAX_TEXT = 1 << 20
"""Maximum characters of a message or prompt."""
MAX_PROMPTS = 128
"""Maximum prompts per completion request."""
MAX_CHOICES = 128
MAX_TOOL_CALLS = 128
"""Maximum calls per message."""
MAX_LOGPROBS = 20
MAX_ECHOED_LOGPROBS = 1 << 18
"""Maximum log-probabilities of prompts in a response, with those of the likeliest tokens."""
MAX_LOGIT_BIAS = 1024
"""Maximum tokens in the logit_bias of a request."""


@dataclass(frozen=True)
class ServerConfig:
    """The server's configuration. Validated on construction.

    Attributes:
        served_model_name: name of the model in requests.
        api_key: key that clients must send as `Authorization: Bearer …`; None: no key required.
        allowed_origins: origins of web pages that may call the server; `*`: all.
        allowed_hosts: accepted names in the Host header, in addition to localhost and loopback addresses; None or `*`:
            any.
        max_queue: maximum waiting sequences, in addition to the running ones; further requests get status 429.
        request_timeout: maximum seconds from a request to the end of its answer; 0: no limit.
        sse_keep_alive_interval: seconds without an event after which a stream gets a comment; 0: never.
        max_body: maximum bytes of a request's body.
        tool_call_parser: the model's tool-call format, a key of tools.formats.FORMATS; auto: recognize it from the
            template.
        reasoning_parser: the kind of the model's reasoning, one of structured.reasoning.PARSERS; none: the reasoning
            stays in the content; auto: recognize it from the template and the vocabulary.
        sampling_defaults: values of temperature, top_k, top_p, min_p and repetition_penalty for requests that give
            none; the others have OpenAI's.
        response_store: maximum bytes of the responses of /v1/responses that later requests may refer to; 0: none.

    Raises:
        UsageError: a value is outside its range.
    """

    served_model_name: str
    api_key: str | None = None
    allowed_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] | None = None
    max_queue: int = 256
    request_timeout: float = 600.0
    sse_keep_alive_interval: float = 15.0
    max_body: int = 8 << 20
    tool_call_parser: str = "auto"
    reasoning_parser: str = "auto"
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)
    response_store: int = 64 << 20

    def __post_init__(self) -> None:
        if not self.served_model_name or not self.served_model_name.isprintable():
            raise UsageError("served_model_name must be a name of printable characters.")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            raise UsageError("api_key must be one or more printable ASCII characters; omit it to require no key.")
        if not 0 <= self.max_queue <= 2**20:
            raise UsageError(f"max_queue must be from 0 to {2**20}, not {self.max_queue}.")
        if not 0 <= self.request_timeout <= 1e9:
            raise UsageError(f"request_timeout must be from 0 to 1e9 seconds, not {self.request_timeout}.")
        if not (self.sse_keep_alive_interval == 0 or 0.001 <= self.sse_keep_alive_interval <= 1e9):
            given = self.sse_keep_alive_interval
            raise UsageError(f"sse_keep_alive_interval must be from 0.001 to 1e9 seconds, or 0, not {given}.")
        if not 1024 <= self.max_body <= 1 << 30:
            raise UsageError(f"max_body must be from 1024 to {1 << 30}, not {self.max_body}.")
        if not 0 <= self.response_store <= 1 << 40:
            raise UsageError(f"response_store must be from 0 to {1 << 40}, not {self.response_store}.")
        if self.tool_call_parser not in ("auto", *FORMATS):
            raise UsageError(f"tool_call_parser must be auto or one of {', '.join(FORMATS)}.")
        if self.reasoning_parser not in ("auto", "none", *PARSERS):
            raise UsageError(f"reasoning_parser must be auto, none or one of {', '.join(PARSERS)}.")
        for origin in self.allowed_origins:
            if origin != "*" and not origin.startswith(("http://", "https://")):
                raise UsageError(f"{origin!r} is not an origin; write one such as https://example.org, or * for all.")
        for host in self.allowed_hosts or ():
            if host != "*" and not re.fullmatch(r"[\w.-]+|[0-9A-Fa-f:.]+", host):
                raise UsageError(f"{host!r} is not a host; write a name or an address, without a port.")
