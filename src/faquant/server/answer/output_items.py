"""The output of a response: turns the deltas of an answer into items, and into the events of a stream."""

import itertools
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..schema.response_object import (
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputText,
    ReasoningText,
    ResponseEvent,
    Status,
)
from ..schema.responses import Delta, TokenLogprob, ToolCallDelta


@dataclass
class _Message:
    kind: ClassVar = "output_text"
    id: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def scores(self) -> dict[str, Any]:
        return {"logprobs": self.logprobs}

    def part(self) -> OutputText:
        return OutputText(type="output_text", text=self.text, annotations=[], logprobs=self.logprobs)

    def item(self, status: Status) -> OutputMessage:
        content = [] if status == "in_progress" else [self.part()]
        return OutputMessage(id=self.id, type="message", status=status, role="assistant", content=content)


@dataclass
class _Thought:
    kind: ClassVar = "reasoning_text"
    id: str = field(default_factory=lambda: f"rs_{uuid.uuid4().hex}")
    text: str = ""
    scores: Mapping[str, Any] = field(default_factory=dict)

    def part(self) -> ReasoningText:
        return ReasoningText(type="reasoning_text", text=self.text)

    def item(self, status: Status) -> OutputReasoning:
        content = [] if status == "in_progress" else [self.part()]
        return OutputReasoning(id=self.id, type="reasoning", status=status, summary=[], content=content)


@dataclass
class _Call:
    call_id: str
    name: str
    id: str = field(default_factory=lambda: f"fc_{uuid.uuid4().hex}")
    arguments: str = ""

    def item(self, status: Status) -> OutputCall:
        return OutputCall(
            id=self.id,
            type="function_call",
            status=status,
            call_id=self.call_id,
            name=self.name,
            arguments=self.arguments,
        )


_Open = _Message | _Thought | _Call


class OutputItems:
    """Collects the items of one answer. Each method returns the events that it causes.

    Attributes:
        items: the items that are complete.
    """

    def __init__(self) -> None:
        self.items: list[OutputItem] = []
        self._numbers = itertools.count()
        self._open: _Open | None = None
        self._calls: list[_Call] = []
        self._logprobs: list[TokenLogprob] = []  # of tokens whose text is not yet final

    def event(self, kind: str, **fields: Any) -> ResponseEvent:
        """An event that is not about an item."""
        return ResponseEvent(type=f"response.{kind}", sequence_number=next(self._numbers), **fields)

    def push(self, deltas: Sequence[Delta], logprobs: Sequence[TokenLogprob]) -> Iterator[ResponseEvent]:
        """Add deltas of an answer, and the log-probabilities of its text."""
        self._logprobs += logprobs
        for delta in deltas:
            if delta.reasoning_content:
                yield from self._think(delta.reasoning_content)
            if delta.content:
                yield from self._write(delta.content)
            for call in delta.tool_calls or ():
                yield from self._call(call)

    def close(self, status: Status) -> Iterator[ResponseEvent]:
        """End the answer. Without any item before, an empty message is its item."""
        if self._open is None and not self.items:  # not even a thought
            yield from self._begin(_Message())
        yield from self._end(status)

    def _write(self, text: str) -> Iterator[ResponseEvent]:
        message = self._open
        if not isinstance(message, _Message):
            message = _Message()
            yield from self._begin(message)
        message.text += text
        logprobs, self._logprobs = self._logprobs, []
        message.logprobs += logprobs
        yield self._about(message, "output_text.delta", content_index=0, delta=text, logprobs=logprobs)

    def _think(self, text: str) -> Iterator[ResponseEvent]:
        thought = self._open
        if not isinstance(thought, _Thought):
            thought = _Thought()
            yield from self._begin(thought)
        thought.text += text
        self._logprobs = []
        yield self._about(thought, "reasoning_text.delta", content_index=0, delta=text)

    def _call(self, delta: ToolCallDelta) -> Iterator[ResponseEvent]:
        self._logprobs = []
        if delta.id is not None:
            self._calls.append(_Call(delta.id, delta.function.name or ""))
            yield from self._begin(self._calls[-1])
        if delta.function.arguments:
            call = self._calls[delta.index]
            call.arguments += delta.function.arguments
            yield self._about(call, "function_call_arguments.delta", delta=delta.function.arguments)

    def _begin(self, new: _Open) -> Iterator[ResponseEvent]:
        yield from self._end("completed")
        self._open = new
        yield self._in_output("output_item.added", item=new.item("in_progress"))
        if not isinstance(new, _Call):
            yield self._about(new, "content_part.added", content_index=0, part=new.part())

    def _end(self, status: Status) -> Iterator[ResponseEvent]:
        one = self._open
        if one is None:
            return
        if isinstance(one, _Message):
            one.logprobs += self._logprobs
        if isinstance(one, _Call):
            yield self._about(one, "function_call_arguments.done", name=one.name, arguments=one.arguments)
        else:
            yield self._about(one, f"{one.kind}.done", content_index=0, text=one.text, **one.scores)
            yield self._about(one, "content_part.done", content_index=0, part=one.part())
        item = one.item(status)
        yield self._in_output("output_item.done", item=item)
        self.items.append(item)
        self._open = None

    def _about(self, one: _Open, kind: str, **fields: Any) -> ResponseEvent:
        return self._in_output(kind, item_id=one.id, **fields)

    def _in_output(self, kind: str, **fields: Any) -> ResponseEvent:
        return self.event(kind, output_index=len(self.items), **fields)
