"""The tool-call formats of model families, named as in vLLM's `--tool-call-parser` where it has a name for them."""

import re
from dataclasses import dataclass
from typing import Literal

_NAMED = ("{", '"name"', ":")
_FENCED = (("```json", *_NAMED), _NAMED)
_JSON = '{"name": "{name}", "arguments": '


@dataclass(frozen=True, kw_only=True)
class CallFormat:
    """The text of calls: the tag, `before`, the calls with `between` between them, and `after`.

    A call consists of its head, its arguments, its tail and its end. In `head`, `{name}` stands for the tool's name and
    `{id}` for an id of nine letters and digits that the model chooses. White space in `end`, `between` and `after` is
    what models usually write there; any other, or none, is accepted. An answer may also stop before an end or `after`.

    Attributes:
        tag: text that begins calls anywhere in an answer; None: there is none.
        between: None if an answer has at most one call.
        arguments: the syntax of the arguments: a JSON object, Python's keyword arguments, or XML parameters.
        tagged: whether an answer that must call begins with the tag.
        markers: further texts that may be single tokens, those that end something last.
        bare: how an answer may begin with a call without the tag: texts between which white space may be, followed by
            the name of a tool.
        bare_ends: the ends of such calls, besides `end`.
        tags: further texts that begin calls anywhere; the grammar reads `before` and the same text instead.
        short_ids: whether templates require ids of nine letters and digits in messages.
    """

    tag: str | None = None
    before: str = ""
    head: str
    tail: str = ""
    end: str = ""
    between: str | None = None
    after: str = ""
    arguments: Literal["json", "python", "xml"] = "json"
    tagged: bool = True
    markers: tuple[str, ...] = ()
    bare: tuple[tuple[str, ...], ...] = ()
    bare_ends: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    short_ids: bool = False

    def head_of(self, name: str) -> str:
        """The text of a call before its arguments."""
        return self.head.replace("{name}", name).replace("{id}", "000000000")

    def bare_name(self, name: str) -> tuple[str, str]:
        """A tool's name with the marks around it, as in a bare call; what the grammar reads for all up to its end."""
        begun, _, rest = self.head.partition("{name}")
        quote = '"' if begun.endswith('"') else ""
        return quote + name + rest[:1], self.before + begun + name + rest[:1]

    @property
    def all_markers(self) -> tuple[str, ...]:
        """The texts that may be single tokens, the tag among them."""
        return (*((self.tag,) if self.tag else ()), *self.markers)

    @property
    def head_pattern(self) -> re.Pattern[str]:
        """Matches a head; the group `name` is the tool's name."""
        pattern = re.escape(self.head).replace(r"\{name\}", r"(?P<name>[a-zA-Z0-9_-]+)")
        return re.compile(pattern.replace(r"\{id\}", "[a-zA-Z0-9]{9}"))


FORMATS = {
    # Qwen2.5-Coder has the template of Qwen2.5, and often answers with a bare or fenced object, or in <tools>.
    "hermes": CallFormat(
        tag="<tool_call>",
        before="\n",
        head=_JSON,
        tail="}",
        end="\n</tool_call>",
        between="\n<tool_call>\n",
        markers=("</tool_call>",),
        bare=(*_FENCED, ("<tools>", *_NAMED)),
        bare_ends=("\n```", "\n</tools>"),
    ),
    # Its templates refuse a message with two calls. Llama 3.1 often writes the type first, as in the tools it is shown.
    "llama3_json": CallFormat(
        tag="<|python_tag|>",
        head='{"name": "{name}", "parameters": ',
        tail="}",
        tagged=False,
        bare=(_NAMED, ("{", '"type"', ":", '"function"', ",", '"name"', ":")),
    ),
    # The numbers are those of mistral-common's tokenizers; `mistral` is version 3 to 7.
    "mistral": CallFormat(
        tag="[TOOL_CALLS]", before=" [", head=_JSON, tail="}", between=", ", after="]", short_ids=True
    ),
    "mistral_v11": CallFormat(
        tag="[TOOL_CALLS]",
        head="{name}[CALL_ID]{id}[ARGS]",
        between="[TOOL_CALLS]",
        markers=("[CALL_ID]", "[ARGS]"),
        short_ids=True,
    ),
    "mistral_v13": CallFormat(
        tag="[TOOL_CALLS]", head="{name}[ARGS]", between="[TOOL_CALLS]", markers=("[ARGS]",), short_ids=True
    ),
    "llama_nemotron_json": CallFormat(
        tag="<TOOLCALL>",
        before="[",
        head=_JSON,
        tail="}",
        between=", ",
        after="]</TOOLCALL>",
        markers=("</TOOLCALL>",),
    ),
    "qwen2_5_coder": CallFormat(
        tag="<tools>",
        before="\n",
        head=_JSON,
        tail="}",
        end="\n</tools>",
        between="\n<tools>\n",
        markers=("</tools>",),
        bare=_FENCED,
        bare_ends=("\n```",),
    ),
    "qwen3_coder": CallFormat(
        tag="<tool_call>",
        before="\n",
        head="<function={name}>\n",
        tail="</function>",
        end="\n</tool_call>",
        between="\n<tool_call>\n",
        arguments="xml",
        markers=("</tool_call>",),
        tags=("<function=",),
    ),
    "deepseek_r1": CallFormat(
        tag="<｜tool▁calls▁begin｜>",
        before="<｜tool▁call▁begin｜>",
        head="function<｜tool▁sep｜>{name}\n```json\n",
        end="\n```<｜tool▁call▁end｜>",
        between="\n<｜tool▁call▁begin｜>",
        after="<｜tool▁calls▁end｜>",
        markers=("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
    ),
    "xlam": CallFormat(before="[", head=_JSON, tail="}", between=", ", after="]", tagged=False, bare=(("[", *_NAMED),)),
    "pythonic": CallFormat(
        before="[",
        head="{name}(",
        tail=")",
        between=", ",
        after="]",
        arguments="python",
        tagged=False,
        bare=(("[",),),
    ),
}
