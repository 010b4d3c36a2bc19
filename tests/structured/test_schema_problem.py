"""What `problem` says of finished answers."""

import re

import pytest

from faquant.structured.structured_output import StructuredOutput
from faquant.structured.tools.calls import Tool, ToolCalls

SCHEMA = {"type": "object", "properties": {"a": {"type": "array", "items": {"maximum": 3}}}, "required": ["a"]}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ('{"a": [1, 5]}', r"5 is greater .* \(at /a/1\)"),
        ("{}", r'"a" is a required property \(at /\)'),
        ('{"a": [1], "b": 1, "b": 1}', "a name twice"),
        ('{"a": [1], "b": 1, "\\u0062": 1}', "a name twice"),
        ('{"a": [1]', "not valid JSON"),
    ],
)
def test_wrong_answers(answer: str, message: str) -> None:
    for problem in (StructuredOutput(json_schema=SCHEMA).problem, Tool("tool", SCHEMA).compiled.problem):
        assert re.search(message, str(problem(answer)))


def test_right_answers() -> None:
    assert StructuredOutput(json_schema=SCHEMA).problem('{"a": [3], "b": {"a": 1}}') is None
    assert StructuredOutput(regex="a").problem("a") is None
    reference = {"$ref": "#/$defs/a", "$defs": {"a": {"const": 1}}}
    assert StructuredOutput(json_schema=reference).problem("1") is None


def test_calls() -> None:
    tools = (Tool("first", SCHEMA), Tool("second", {"properties": {"n": {"maximum": 3}}}))
    for format, text in (
        ("hermes", 'So: <tool_call>{{"name": "second", "arguments": {}}}</tool_call>'),
        ("pythonic", "[second({})]"),
    ):
        answers = StructuredOutput(tool_calls=ToolCalls((Tool("first"), tools[1]), format))
        assert answers.problem(text.format('{"n": 3}' if format == "hermes" else "n=3")) is None
        wrong = answers.problem(text.format('{"n": 4}' if format == "hermes" else "n=4"))
        assert re.search(r"4 is greater .* \(at /n\) \(in the call of second\)", str(wrong))
    assert StructuredOutput(tool_calls=ToolCalls(tools, "hermes")).problem("No call.") is None
