"""Splits an answer's text into content and calls, piece by piece."""

from dataclasses import dataclass

from .arguments import ArgumentsReader
from .calls import ToolCalls
from .opening import Opening, SplitText


@dataclass(frozen=True)
class Content:
    """A part of the message's text."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """The beginning of a call: its index in the answer and the name of the tool."""

    index: int
    name: str


@dataclass(frozen=True)
class Arguments:
    """A part of a call's arguments, which are a JSON object."""

    index: int
    text: str


Piece = Content | CallStart | Arguments


@dataclass(frozen=True)
class FunctionCall:
    """A call of a tool. `arguments` is the text of a JSON object; only the token limit can cut it off."""

    name: str
    arguments: str


def parse(
    calls: ToolCalls, text: str, cut: bool, is_formed: bool = False
) -> tuple[str, tuple[FunctionCall, ...], bool]:
    """The content and the calls of an answer, and whether it has calls and none is cut off.

    cut: whether the token limit has ended the answer. is_formed: as for CallParser.
    """
    parser = CallParser(calls, is_formed)
    content, names, arguments = "", [], []
    for piece in parser.push(text) + parser.flush(cut):
        if isinstance(piece, Content):
            content += piece.text
        elif isinstance(piece, CallStart):
            names.append(piece.name)
            arguments.append("")
        else:
            arguments[piece.index] += piece.text
    return content, tuple(map(FunctionCall, names, arguments)), parser.complete


def opening_of(calls: ToolCalls, is_formed: bool = False) -> Opening:
    """The beginnings of calls in an answer that is not forced. If it must not call, half a tag counts as one.

    is_formed: as for CallParser. Calls then begin as forced ones do.
    """
    style = calls.style
    if is_formed and style.tagged and style.tag:
        return Opening({style.tag: ""})
    if not calls.tools:
        return Opening({style.tag[: len(style.tag) // 2 + 1]: ""} if style.tag else {})
    tags = {**({style.tag: ""} if style.tag else {}), **{tag: style.before + tag for tag in style.tags}}
    return Opening(tags, style.bare, dict(style.bare_name(tool.name) for tool in calls.tools) if style.bare else {})


class CallParser:
    """Reads one answer with the given `ToolCalls`. Text that may be markup is held back until that is certain.

    is_formed: whether the answer has a required form unless it begins with a call.
    """

    def __init__(self, calls: ToolCalls, is_formed: bool = False) -> None:
        self._is_formed = is_formed
        self._opening = None if calls.forced else opening_of(calls, is_formed)
        self._tools = calls
        self._head = calls.style.head_pattern
        self._at_start = True
        self._held = ""
        self._count = 0
        self._arguments: ArgumentsReader | None = None

    @property
    def complete(self) -> bool:
        """Whether there are calls, and none is cut off."""
        return self._count > 0 and self._arguments is None

    def push(self, text: str) -> list[Piece]:
        """Read more of the answer."""
        if self._opening is None:
            return self._calls(text)
        if self._is_formed and not self._at_start:
            return [Content(text)] if text else []
        split = self._opening.split(self._held + text, self._at_start)
        if self._is_formed and split.text:  # a later tag is text in a string
            split = SplitText(self._held + text, "")
        self._held = split.held
        self._at_start = self._at_start and not split.text
        pieces: list[Piece] = [Content(split.text)] if split.text else []
        if split.calls is not None:
            self._opening = None
            pieces += self._calls(split.calls)
        return pieces

    def flush(self, cut: bool = False) -> list[Piece]:
        """End the answer. Text held back is content, unless calls have begun.

        If the token limit has `cut` the answer off, a held text of more than one character is probably markup and is
        dropped.
        """
        held, self._held = self._held, ""
        is_content = self._opening is not None and (len(held) == 1 or not cut)
        return [Content(held)] if held and is_content else []

    def _calls(self, text: str) -> list[Piece]:
        pieces: list[Piece] = []
        text = self._held + text
        while text:
            if self._arguments is None:
                head = self._head.search(text)
                if head is None:
                    break
                text = text[head.end() :]
                pieces.append(CallStart(self._count, head["name"]))
                self._count += 1
                self._arguments = self._tools.reader(head["name"])
            written, text = self._arguments.push(text)
            if written:
                pieces.append(Arguments(self._count - 1, written))
            if self._arguments.ended:
                self._arguments = None
        self._held = text
        return pieces
