"""Splits the reasoning off one answer, and counts its tokens."""

from ...engine.request import Output
from ...structured.reasoning import Reasoning, ReasoningParser


class ThoughtCounter:
    """Reads the outputs of one answer."""

    def __init__(self, reasoning: Reasoning) -> None:
        self._parser = ReasoningParser(reasoning)
        self._end_id = reasoning.end_id
        self._tokens = 0

    @property
    def tokens(self) -> int:
        """The number of tokens of the reasoning so far, with its tags."""
        return self._tokens if self._parser.has_reasoning else 0

    def push(self, output: Output) -> tuple[str, str]:
        """The text of the reasoning and the other text that are certain with a step's output."""
        before = self._parser.state
        thought, text = self._parser.push(output.text)
        if output.finish_reason is not None:
            last_thought, last_text = self._parser.flush()
            thought, text = thought + last_thought, text + last_text
        if before != "rest":
            self._tokens += self._count(output)
        return thought, text

    def _count(self, output: Output) -> int:
        if self._parser.state == "rest" and self._end_id in output.token_ids:
            return output.token_ids.index(self._end_id) + 1
        return len(output.token_ids)
