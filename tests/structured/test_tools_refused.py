"""Tools that are no tools, or that a format of calls cannot express."""

from typing import Any

import pytest

from faquant.errors import UsageError
from faquant.structured.structured_output import StructuredOutput
from faquant.structured.tools.calls import MAX_TOOLS, Tool, ToolCalls


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("", None, "name must be"),
        ("a b", None, "name must be"),
        ("x" * 65, None, "name must be"),
        ("ok", {"type": "string"}, "type object"),
        ("ok", {"type": ["object", "null"]}, "type object"),
        ("ok", {"not": {}}, "parameters of the tool ok admits no value"),
        ("ok", {"properties": {"a": {"type": "nothing"}}}, "'type' at /properties/a, which must be"),
        ("ok", {"properties": {"a": {"$ref": "#/$defs/b"}}}, "parameters of the tool ok refers to '#/.defs/b'"),
        ("ok", {"description": "x" * 300_000}, "at most 262144 bytes"),
        ("ok", [], "must be a JSON object"),
    ],
)
def test_one_tool(name: str, parameters: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Tool(name, parameters)


@pytest.mark.parametrize(
    ("tools", "options", "message"),
    [
        ((Tool("a"), Tool("a")), {}, "two tools named a"),
        (tuple(Tool(f"t{n}") for n in range(MAX_TOOLS + 1)), {}, "1 to 128 tools, not 129"),
        ((), {"forced": True}, "1 to 128 tools, not 0"),
        ((Tool("a"),), {"format": "xml"}, "must be one of hermes"),
        ((Tool("a-b"),), {"format": "pythonic"}, "because of 'a-b'"),
        ((Tool("a", {"minProperties": 1}),), {"format": "pythonic"}, "because of 'minProperties'"),
        ((Tool("a", {"properties": {"b c": {}}}),), {"format": "pythonic"}, "because of 'b c'"),
        (
            (Tool("a", {"properties": {"b": {"type": "array", "items": {"$ref": "#"}}}}),),
            {"format": "pythonic"},
            "because of '#'",
        ),
        (tuple(Tool(f"t{n}", {"title": "x" * 200_000}) for n in range(2)), {}, "together must have at most"),
        ((Tool("a", {"properties": {"b>c": {}}}),), {"format": "qwen3_coder"}, "because of 'b>c'"),
    ],
)
def test_tools_together(tools: Any, options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ToolCalls(tools, **{"format": "hermes", **options})


def test_strings_without_a_grammar_are_checked_or_refused_in_every_format() -> None:
    parameters = {"properties": {"a": {"type": "string", "pattern": r"(?<=b)a"}}}
    with pytest.raises(UsageError, match=r"tool t has 'pattern' at /properties/a, which cannot be enforced"):
        Tool("t", parameters, strict=True)
    for format in ("hermes", "qwen3_coder"):
        answers = StructuredOutput(tool_calls=ToolCalls((Tool("t", parameters),), format, forced=True))
        assert answers.unenforced == ("'pattern' at /properties/a of the tool t",)
    call = "<tool_call>\n<function=t>\n<parameter=a>\n{}\n</parameter>\n</function>\n</tool_call>"
    assert answers.problem(call.format("ba")) is None
    assert "does not match" in (answers.problem(call.format("a")) or "")


def test_what_cannot_be_enforced_is_refused_if_strict() -> None:
    parameters = {"properties": {"a": {"type": "array", "minItems": 2, "uniqueItems": True}}}
    with pytest.raises(UsageError, match=r"tool sum has 'uniqueItems' .*, which cannot be enforced"):
        Tool("sum", parameters, strict=True)
    calls = ToolCalls((Tool("ok"), Tool("sum", parameters)), "hermes")
    (unenforced,) = StructuredOutput(tool_calls=calls).unenforced
    assert unenforced.startswith("'uniqueItems'")
    assert unenforced.endswith("of the tool sum")
