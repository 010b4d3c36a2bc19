"""How one model is shown tools and conversations with calls, and how it writes calls itself."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import UnsupportedError, UsageError
from ...text.tokenizer import Tokenizer
from .formats import detect
from .prompt import Message, as_plain_messages, with_short_ids


class Conversation:
    """Of one tokenizer and its chat template.

    format: of FORMATS, or auto: as the template says. A template without a section for tools gets a prompt of ours,
    which is in the format hermes.

    Raises:
        UsageError: the format is another, and the template has no section for tools.
    """

    def __init__(self, tokenizer: Tokenizer, format: str = "auto") -> None:
        self._tokenizer = tokenizer
        self._has_tools = True
        try:
            template = tokenizer.tool_template
        except UnsupportedError:  # of several templates none is for chat; rendering says so
            template = None
        if template is None:
            self._has_tools = False
            if format not in ("auto", "hermes"):
                raise UsageError(
                    f"The chat template has no section for tools; the prompt that stands in for it is in the format "
                    f"hermes, not {format}."
                )
            self.format: str | None = "hermes" if tokenizer.has_chat_template else None
        else:
            self.format = detect(template) if format == "auto" else format

    @property
    def description(self) -> str:
        """For people."""
        if self.format is None:
            return "none, its format is not known; --tool-call-parser names one"
        return self.format if self._has_tools else f"{self.format}, by a prompt of ours"

    def encode(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Token ids of a conversation. Messages may have `tool_calls`, whose arguments are objects, and role `tool`.

        Raises: as Tokenizer.encode_chat.
        """
        if not self._has_tools:
            messages, tools = as_plain_messages(messages, tools), ()
        elif self.format == "mistral":
            messages = with_short_ids(messages)
        return self._tokenizer.encode_chat(messages, add_generation_prompt, tools or None, variables)
