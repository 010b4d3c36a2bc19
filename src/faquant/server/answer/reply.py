"""One answer of a chat: converts the engine's outputs to stream deltas and to a complete message."""

import uuid
from dataclasses import dataclass

from ...engine.request import Output
from ...structured.reasoning import Reasoning
from ...structured.tools.calls import ToolCalls
from ...structured.tools.parser import Arguments, CallParser, CallStart, Content, Piece
from ..schema.responses import (
    CallsMessage,
    ChatMessage,
    Delta,
    FunctionDelta,
    FunctionMessage,
    ToolCall,
    ToolCallDelta,
    ToolCallFunction,
)
from .thoughts import ThoughtCounter


@dataclass
class _OpenCall:
    id: str
    name: str
    arguments: str = ""


class Reply:
    """Collects one answer.

    Args:
        calls: the tools that it may call; None: plain text.
        reasoning: the reasoning before that; None: there is none.
        is_formed: whether the answer has a required form, unless it consists of calls.
        wants_function: a call, of which there is at most one, becomes a function_call instead of tool_calls.
    """

    def __init__(
        self,
        calls: ToolCalls | None,
        reasoning: Reasoning | None = None,
        is_formed: bool = False,
        wants_function: bool = False,
    ) -> None:
        self._wants_function = wants_function
        self._parser = None if calls is None else CallParser(calls, is_formed)
        self._thoughts = None if reasoning is None else ThoughtCounter(reasoning)
        self._reasoning = ""
        self._content = ""
        self._calls: list[_OpenCall] = []
        self.finish_reason: str | None = None

    @property
    def first(self) -> Delta:
        """The first delta of a stream."""
        is_text = self._parser is None and self._thoughts is None
        return Delta(role="assistant", content="" if is_text else None)

    @property
    def reasoning_tokens(self) -> int:
        return 0 if self._thoughts is None else self._thoughts.tokens

    def push(self, output: Output) -> list[Delta]:
        """Add a step's output; return at most one delta with reasoning and one with text, and one for each call."""
        self.finish_reason = output.finish_reason
        thought, text = ("", output.text) if self._thoughts is None else self._thoughts.push(output)
        self._reasoning += thought
        if self._parser is None:
            pieces: list[Piece] = [Content(text)] if text else []
        else:
            pieces = self._parser.push(text)
            if output.finish_reason is not None:
                pieces += self._parser.flush(cut=output.finish_reason == "length")
                if self._parser.complete:
                    self.finish_reason = "function_call" if self._wants_function else "tool_calls"
                elif not (pieces or self._content or self._calls):
                    pieces = [Content("")]  # a message has content or calls
        content = [Delta(reasoning_content=thought)] if thought else []
        deltas: dict[int, ToolCallDelta] = {}
        for piece in pieces:
            if isinstance(piece, Content):
                self._content += piece.text
                content.append(Delta(content=piece.text))
            elif isinstance(piece, CallStart):
                deltas[piece.index] = self._begin(piece)
            else:
                deltas[piece.index] = self._go_on(piece, deltas.get(piece.index))
        if self._wants_function:
            return [*content, *(Delta(function_call=delta.function) for delta in deltas.values())]
        return [*content, *(Delta(tool_calls=[delta]) for delta in deltas.values())]

    @property
    def has_called(self) -> bool:
        """Whether the answer has ended with calls, none of which is cut off."""
        return self.finish_reason in ("tool_calls", "function_call")

    def message(self) -> ChatMessage | CallsMessage | FunctionMessage:
        """The complete message."""
        if not self._calls:
            return ChatMessage(
                role="assistant", content=self._content, reasoning_content=self._reasoning or None, refusal=None
            )
        if self._wants_function:
            return FunctionMessage(
                role="assistant",
                content=self._content or None,
                reasoning_content=self._reasoning or None,
                refusal=None,
                function_call=ToolCallFunction(name=self._calls[0].name, arguments=self._calls[0].arguments),
            )
        calls = [
            ToolCall(id=call.id, function=ToolCallFunction(name=call.name, arguments=call.arguments))
            for call in self._calls
        ]
        return CallsMessage(
            role="assistant",
            content=self._content or None,
            reasoning_content=self._reasoning or None,
            refusal=None,
            tool_calls=calls,
        )

    def _begin(self, piece: CallStart) -> ToolCallDelta:
        call = _OpenCall(f"call_{uuid.uuid4().hex[:24]}", piece.name)
        self._calls.append(call)
        function = FunctionDelta(name=call.name, arguments="")
        return ToolCallDelta(index=piece.index, id=call.id, type="function", function=function)

    def _go_on(self, piece: Arguments, begun: ToolCallDelta | None) -> ToolCallDelta:
        self._calls[piece.index].arguments += piece.text
        if begun is None:
            return ToolCallDelta(index=piece.index, function=FunctionDelta(arguments=piece.text))
        function = begun.function.model_copy(update={"arguments": begun.function.arguments + piece.text})
        return begun.model_copy(update={"function": function})
