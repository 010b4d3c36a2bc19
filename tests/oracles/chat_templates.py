"""Templates in the styles of well-known models, written for the tests, and what renders them."""

from pathlib import Path
from typing import Any

from faquant.text.chat_template import ChatTemplate

TEMPLATES = {path.stem: path.read_text() for path in (Path(__file__).parents[1] / "text" / "templates").glob("*.jinja")}
USER = {"role": "user", "content": "What is <b>5 & 7</b>?  Größe 😀 'quoted'"}


def render(source: str, messages: Any = (USER,), **others: Any) -> str:
    return ChatTemplate(source, "a test").render(list(messages), **others)
