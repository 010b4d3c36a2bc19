"""What is known of one request while it is answered, and told about it afterwards."""

import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...engine.request import Output
from ..schema.responses import PromptTokensDetails, Usage

_ACCEPTABLE_ID = re.compile(r"[A-Za-z0-9._:/=+@-]{1,128}")


@dataclass
class Record:
    """Nothing in it is text of a prompt or an answer.

    Attributes:
        sequences: that it has been let in with.
        first_token: seconds from its arrival.
        status: of the answer; 499 where the client left before it was complete.
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
    first_token: float | None = None
    finish_reasons: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def asks(self, prompts: Sequence[Sequence[int]], stream: bool) -> None:
        self.prompt_tokens = sum(map(len, prompts))
        self.stream = stream

    def count(self, output: Output) -> None:
        """Take note of what one step has brought."""
        if self.first_token is None:
            self.first_token = time.monotonic() - self.begin
        self.completion_tokens += len(output.token_ids)
        if output.finish_reason is not None:
            self.finish_reasons.append(output.finish_reason)
            if output.request.index == 0:  # the other answers to a prompt find what this one has read
                self.cached_tokens += output.request.cached_tokens or 0

    def calls_tools(self) -> None:
        """The answer that has just ended is calls."""
        self.finish_reasons[-1] = "tool_calls"

    def end(self) -> None:
        self.seconds = time.monotonic() - self.begin

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            total_tokens=self.prompt_tokens + self.completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=self.cached_tokens),
        )

    def as_log(self) -> dict[str, Any]:
        told = {"id": self.request_id, "method": self.method, "path": self.path, "status": self.status}
        if self.sequences:
            told |= {
                "stream": self.stream,
                "sequences": self.sequences,
                "prompt_tokens": self.prompt_tokens,
                "cached_tokens": self.cached_tokens,
                "completion_tokens": self.completion_tokens,
                "finish": ",".join(sorted(set(self.finish_reasons))),
            }
        if self.first_token is not None:
            told["first_token_s"] = round(self.first_token, 4)
        return told | {"seconds": round(self.seconds, 4)}


def request_id(sent: str) -> str:
    """The client's own, if it is one that may stand in a log and a header; else a new one."""
    return sent if _ACCEPTABLE_ID.fullmatch(sent) else uuid.uuid4().hex
