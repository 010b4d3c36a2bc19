"""Chat templates: jinja2 templates in a checkpoint that turn messages into the prompt format of the model."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Template
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.meta import find_undeclared_variables

from ..checkpoint.side_files import read_side_file, read_side_object, template_files
from ..errors import CheckpointError, UnsupportedError, UsageError
from .template_sandbox import Budget, TemplateEnvironment, TemplateRefusalError

MAX_TEMPLATE_BYTES = 1 << 20
MAX_DEPTH = 64
_OWN_VARIABLES = ("messages", "tools", "documents", "add_generation_prompt")


class ChatTemplate:
    """One template. It is compiled on first use, so that a broken template does not prevent plain completions.

    Attributes:
        source: the jinja2 text.
        origin: the file it comes from, for error messages.
    """

    def __init__(self, source: str, origin: str) -> None:
        if len(source.encode("utf-8", "surrogatepass")) > MAX_TEMPLATE_BYTES:
            raise UnsupportedError(
                f"The chat template in {origin} is larger than {MAX_TEMPLATE_BYTES} bytes, which is not supported."
            )
        self.source = source
        self.origin = origin

    @cached_property
    def _compiled(self) -> Template:
        try:
            with Budget():
                return TemplateEnvironment().from_string(self.source)
        except TemplateSyntaxError as error:
            problem = f"line {error.lineno}: {error.message}"
        except Exception as error:  # untrusted input: RecursionError, SyntaxError, OverflowError
            problem = f"{type(error).__name__}: {error}"
        raise UnsupportedError(
            f"The chat template in {self.origin} cannot be compiled ({problem}). Fix it, or put a working one into "
            "chat_template.jinja in the same directory."
        )

    @cached_property
    def variables(self) -> frozenset[str]:
        """The names of the variables that the template uses."""
        try:
            with Budget():
                return frozenset(find_undeclared_variables(TemplateEnvironment().parse(self.source)))
        except Exception:  # as above; `render` reports the error
            return frozenset()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        null_content: bool = False,
    ) -> str:
        """Render a conversation.

        As in transformers, keys of a message whose value is None are left out; but an assistant's message without
        content has the content "", because templates treat it as text. If a message's content is a list of text parts,
        they are joined with line breaks. An empty list of tools counts as none. Tools are also the variable xml_tools
        if the template does not use `tools`, as SmolLM3's does not.

        Args:
            variables: additional variables for the template, such as bos_token or enable_thinking.
            null_content: keep a content that is None, which some templates compare with none.

        Raises:
            UsageError: messages, tools or variables have the wrong shape, or the template refuses them.
            UnsupportedError: the template cannot be compiled, uses what the sandbox forbids, or runs for too long.
        """
        names: dict[str, Any] = {}
        for name, value in (variables or {}).items():
            if name in _OWN_VARIABLES:
                message = f"The chat template's variable {name!r} has its own argument; pass it there."
                raise UsageError(message, "chat_template_kwargs")
            names[str(name)] = _plain(value, f"variable {name!r}", "chat_template_kwargs")
        names["messages"] = _check_messages(messages, null_content)
        names["tools"] = _check_tools(tools)
        if "tools" not in self.variables and names["tools"]:
            names.setdefault("xml_tools", names["tools"])
        names["documents"] = None
        names["add_generation_prompt"] = add_generation_prompt
        template = self._compiled
        try:
            with Budget():
                return template.render(names)
        except TemplateRefusalError as error:
            raise UsageError(f"The chat template refuses these messages: {error.message}") from None
        except (SecurityError, OverflowError, MemoryError) as error:
            raise UnsupportedError(f"The chat template in {self.origin} was stopped: {error}.") from None
        except Exception as error:  # the template is an untrusted program
            raise UsageError(
                f"The chat template in {self.origin} fails on these messages ({type(error).__name__}: {error}). "
                "Check that every message has the keys that this model's template expects."
            ) from None


class ChatTemplates:
    """The templates of one checkpoint by name; most have only `default`, some also `tool_use`."""

    def __init__(self, templates: Mapping[str, ChatTemplate], directory: Path) -> None:
        self._templates = dict(templates)
        self._directory = directory

    def __bool__(self) -> bool:
        return bool(self._templates)

    @property
    def sources(self) -> dict[str, str]:
        """The text of each template by name."""
        return {name: template.source for name, template in self._templates.items()}

    def choose(self, with_tools: bool) -> ChatTemplate:
        """The template for a request: `tool_use` if the request has tools and the template exists, else `default`.

        Raises:
            UnsupportedError: there is no such template.
        """
        names = ("tool_use", "default") if with_tools else ("default",)
        for name in names:
            if name in self._templates:
                return self._templates[name]
        if self._templates:
            raise UnsupportedError(
                f"{self._directory} has chat templates named {', '.join(self._templates)}, but none named default. "
                "Copy the one to use to chat_template.jinja."
            )
        raise UnsupportedError(
            f"{self._directory} has no chat template, so it is probably not a chat model. Use plain text instead of "
            "messages, or put a template into chat_template.jinja."
        )


def load_chat_templates(directory: Path, tokenizer_config: Mapping[str, Any]) -> ChatTemplates:
    """Load the templates. chat_template.jinja and additional_chat_templates/NAME.jinja override tokenizer_config.json,
    which overrides chat_template.json.

    Raises:
        CheckpointError: a file cannot be read or has the wrong shape.
        UnsupportedError: a template is too large.
    """
    templates: dict[str, ChatTemplate] = {}
    older = "chat_template.json"
    _collect(templates, read_side_object(directory, older).get("chat_template"), directory / older)
    _collect(templates, tokenizer_config.get("chat_template"), directory / "tokenizer_config.json")
    for file in (*template_files(directory), "chat_template.jinja"):
        source = _read_text(directory, file)
        if source is not None:
            name = "default" if file == "chat_template.jinja" else Path(file).stem
            templates[name] = ChatTemplate(source, str(directory / file))
    return ChatTemplates(templates, directory)


def _collect(templates: dict[str, ChatTemplate], value: object, path: Path) -> None:
    if value is None:
        return
    entries = [{"name": "default", "template": value}] if isinstance(value, str) else value
    if not isinstance(entries, list):
        raise CheckpointError(f"{path}: chat_template must be a string or a list of named templates.")
    for entry in entries:
        name, source = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(source, str):
            raise CheckpointError(f"{path}: each entry of chat_template must have the strings name and template.")
        templates[name] = ChatTemplate(source, str(path))


def _read_text(directory: Path, name: str) -> str | None:
    data = read_side_file(directory, name)
    try:
        return None if data is None else data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{directory / name} cannot be read: {error}.") from None


def _check_messages(messages: object, null_content: bool) -> list[dict[str, Any]]:
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
        raise UsageError('Messages must be a list of objects such as {"role": "user", "content": "Hello"}.')
    if not messages:
        raise UsageError("There are no messages; at least one is required.")
    return [_check_message(message, f"message {index}", null_content) for index, message in enumerate(messages)]


def _check_message(message: object, where: str, null_content: bool) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise UsageError(f"{where} must be an object with role and content, not a {type(message).__name__}.")
    plain: dict[str, Any] = {
        key: value for key, value in _plain(message, where, "messages").items() if value is not None
    }
    if not isinstance(plain.get("role"), str) or not plain["role"]:
        raise UsageError(f"{where} must have a role, such as system, user or assistant.")
    if null_content and "content" in message and message["content"] is None:
        return {**plain, "content": None}
    if plain["role"] == "assistant":
        plain.setdefault("content", "")
    content = plain.get("content", "")
    if isinstance(content, list):
        plain["content"] = "\n".join(_part_text(part, where) for part in content)
    elif not isinstance(content, str):
        raise UsageError(f"{where}: content must be a string or a list of text parts, not {_short(content)}.")
    return plain


def _part_text(part: object, where: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise UnsupportedError(
        f'{where}: only content parts of the form {{"type": "text", "text": "..."}} are supported, not {_short(part)}; '
        "these models read text only."
    )


def _check_tools(tools: object) -> list[dict[str, Any]] | None:
    if tools is None:
        return None
    if isinstance(tools, str | bytes) or not isinstance(tools, Sequence):
        raise UsageError("Tools must be a list of objects with the JSON schemas of functions.")
    for index, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise UsageError(f"tool {index} must be an object, not a {type(tool).__name__}.")
    return [_plain(tool, f"tool {index}", "tools") for index, tool in enumerate(tools)] or None


def _plain(value: object, where: str, field: str, depth: int = 0) -> Any:
    # Only JSON types are passed to a template, because it could call the methods of other objects.
    if depth > MAX_DEPTH:
        raise UsageError(f"{where} is nested more than {MAX_DEPTH} levels deep.", field)
    if value is None or type(value) in (str, bool, int, float):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise UsageError(f"{where} has a key that is not a string.", field)
        return {str.__str__(key): _plain(item, where, field, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where, field, depth + 1) for item in value]
    raise UsageError(f"{where} holds a {type(value).__name__}; only JSON values are allowed.", field)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
