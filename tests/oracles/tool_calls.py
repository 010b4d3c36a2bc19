"""Two tools, and the calls that an answer's text has."""

from faquant.structured.tools.calls import Tool, ToolCalls
from faquant.structured.tools.parser import CallParser, CallStart, Content

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "dry": {"type": "boolean"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = (Tool("weather", WEATHER), Tool("ping"))


def read(calls: ToolCalls, *texts: str) -> tuple[str, list[tuple[str, str]], bool]:
    """Content, calls with the text of their arguments, and whether the last is complete."""
    parser = CallParser(calls)
    pieces = [piece for text in texts for piece in parser.push(text)] + parser.flush()
    content, found = "", []
    for piece in pieces:
        if isinstance(piece, Content):
            assert not found, "content comes before the calls"
            content += piece.text
        elif isinstance(piece, CallStart):
            assert piece.index == len(found)
            found.append((piece.name, ""))
        else:
            name, text = found[piece.index]
            assert piece.index == len(found) - 1
            found[-1] = (name, text + piece.text)
    return content, found, parser.complete
