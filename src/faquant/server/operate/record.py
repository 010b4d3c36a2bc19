"""The record of one request, for the log, the metrics and the usage."""

import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...engine.request import Output
from ..schema.responses import CompletionTokensDetails, PromptTokensDetails, Usage

_ACCEPTABLE_ID = re.compile(r"[A-Za-z0-9._:/=+@-]{1,128}")


@dataclass
class Record:
    """The record of one request. It contains no text of a prompt or an answer.

    Attributes:
        sequences: number of admitted sequences.
        first_token: seconds from arrival to the first token that was sent.
        is_withheld: whether an answer was sent as a whole, so that its tokens have no times.
        status: HTTP status; 499 if the client disconnected before the response was complete.
    """

    request_id: str
    method: str
    path: str
    begin: float = field(default_factory=time.monotonic)
    status: int = 499
    stream: bool = False
    sequences: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    first_token: float | None = None
    is_withheld: bool = False
    finish_reasons: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def asks(self, prompts: Sequence[Sequence[int]], stream: bool) -> None:
        self.prompt_tokens = sum(map(len, prompts))
        self.stream = stream

    def count(self, output: Output) -> None:
        """Count the output of a step."""
        if self.first_token is None and (output.token_ids or output.finish_reason is not None):
            self.first_token = time.monotonic() - self.begin
        self.completion_tokens += len(output.token_ids)
        self.is_withheld |= output.request.is_withheld
        if output.finish_reason is not None:
            self.finish_reasons.append(output.finish_reason)
            if output.request.index == 0:  # the other answers reuse this one's pages
                self.cached_tokens += output.request.cached_tokens or 0

    def calls_tools(self) -> None:
        """Record that the last finished answer consists of tool calls."""
        self.finish_reasons[-1] = "tool_calls"

    def end(self) -> None:
        self.seconds = time.monotonic() - self.begin

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            total_tokens=self.prompt_tokens + self.completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=self.cached_tokens),
            completion_tokens_details=CompletionTokensDetails(reasoning_tokens=self.reasoning_tokens),
        )

    def as_log(self) -> dict[str, Any]:
        entry = {"id": self.request_id, "method": self.method, "path": self.path, "status": self.status}
        if self.sequences:
            entry |= {
                "stream": self.stream,
                "sequences": self.sequences,
                "prompt_tokens": self.prompt_tokens,
                "cached_tokens": self.cached_tokens,
                "completion_tokens": self.completion_tokens,
                "finish": ",".join(sorted(set(self.finish_reasons))),
            }
        if self.first_token is not None:
            entry["first_token_s"] = round(self.first_token, 4)
        return entry | {"seconds": round(self.seconds, 4)}


def request_id(sent: str) -> str:
    """The client's request id if it is safe for logs and headers, else a new one."""
    return sent if _ACCEPTABLE_ID.fullmatch(sent) else uuid.uuid4().hex
