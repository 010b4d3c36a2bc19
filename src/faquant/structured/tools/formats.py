"""How families of models write calls of tools; by the names that vLLM's `--tool-call-parser` has for them."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class CallFormat:
    """What stands around calls. A call is its head, the arguments and its tail.

    tag: what begins calls anywhere in an answer. has_bare: whether an answer may also begin with calls and no tag, as
    it does where it must call. before, between, after: around and between calls, behind the tag; `between` is None
    where an answer has one call at most. arguments: the key of a JSON call's arguments; None where calls are Python.
    """

    tag: str | None
    has_bare: bool
    before: str
    between: str | None
    after: str
    arguments: str | None

    def head(self, name: str) -> str:
        """What stands before the arguments."""
        return f"{name}(" if self.arguments is None else f'{{"name": "{name}", "{self.arguments}": '

    @property
    def tail(self) -> str:
        return ")" if self.arguments is None else "}"

    def bare_beginning(self, name: str) -> str:
        """What of before and head suffices to know that an answer is a call."""
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


# As it is described to the model, or written for it. A tool's own parameters stand further off.
_LLAMA_CALL = re.compile(r"""{\\?["']name\\?["']:[^\n]{1,100}["'] *parameters\\?["'] *:""")


def detect(template: str) -> str | None:
    """The format that a chat template with a section for tools tells its model to write; None: none of these."""
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
