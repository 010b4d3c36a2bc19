"""The tool-call formats of model families, named as in vLLM's `--tool-call-parser`."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class CallFormat:
    """The text around calls. A call consists of its head, the arguments and its tail.

    Attributes:
        tag: text that starts calls anywhere in an answer.
        has_bare: whether an answer may also begin with a call without the tag. Forced answers then do.
        before, between, after: the text before, between and after the calls, following the tag. `between` is None if an
            answer has at most one call.
        arguments: the key of the arguments in a JSON call; None if calls are Python.
    """

    tag: str | None
    has_bare: bool
    before: str
    between: str | None
    after: str
    arguments: str | None

    def head(self, name: str) -> str:
        """The text of a call before its arguments."""
        return f"{name}(" if self.arguments is None else f'{{"name": "{name}", "{self.arguments}": '

    @property
    def tail(self) -> str:
        return ")" if self.arguments is None else "}"

    def bare_beginning(self, name: str) -> str:
        """The beginning of an answer that identifies it as a bare call: `before` and a part of the head."""
        head = self.head(name)
        return self.before + (head if self.arguments is None else head[: head.index(",")])


FORMATS = {
    "hermes": CallFormat(
        "<tool_call>", False, "\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>", arguments="arguments"
    ),
    # Its templates refuse a message with two calls.
    "llama3_json": CallFormat("<|python_tag|>", True, "", None, "", arguments="parameters"),
    "mistral": CallFormat("[TOOL_CALLS]", False, " [", ", ", "]", arguments="arguments"),
    "pythonic": CallFormat(None, True, "[", ", ", "]", arguments=None),
}


# As the template describes or writes a call. In a tool's own schema, "parameters" is further away from "name".
_LLAMA_CALL = re.compile(r"""{\\?["']name\\?["']:[^\n]{1,100}["'] *parameters\\?["'] *:""")


def detect(template: str) -> str | None:
    """The format that a chat template with a section for tools asks its model to write; None: an unknown format."""
    if "<function=" in template or "[ARGS]" in template:
        return None
    if "<tool_call>" in template:
        return None if "<arg_key>" in template else "hermes"
    if "[TOOL_CALLS]" in template:
        return "mistral"
    if re.search(r"\[\w+\(\w+ ?=", template):
        return "pythonic"
    if "<|python_tag|>" in template or _LLAMA_CALL.search(template):
        return "llama3_json"
    return None
