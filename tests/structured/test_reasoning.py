"""Reasoning comes apart from the rest of an answer, and structure begins after it, within the limit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken

from faquant.errors import UsageError
from faquant.sampling.sampler import Sampler, SamplingParams
from faquant.structured.reasoning import Reasoner, Reasoning, ReasoningParser, reasoner_of, split_reasoning
from faquant.structured.structured_output import StructuredOutput
from faquant.structured.tools.calls import ToolCalls
from faquant.text.tokenizer import Tokenizer
from oracles.chat_templates import TEMPLATES
from oracles.constrained import Model, check
from oracles.tokenizer_kinds import byte_level, write_model
from oracles.tool_calls import TOOLS, read

MAY, OPENED, EXPECTED = Reasoning(False, False), Reasoning(True, True), Reasoning(False, True)


def split(reasoning: Reasoning, *texts: str) -> tuple[str, str]:
    parser = ReasoningParser(reasoning)
    pieces = [parser.push(text) for text in texts] + [parser.flush()]
    return "".join(piece[0] for piece in pieces), "".join(piece[1] for piece in pieces)


class TestParser:
    @pytest.mark.parametrize(
        ("reasoning", "text", "wanted"),
        [
            (MAY, "<think>\nOne <b>,\n\ntwo.\n</think>\n\nYes.\n", ("One <b>,\n\ntwo.", "Yes.\n")),
            (MAY, "\n<think>a</think>b", ("a", "b")),
            (MAY, "<think>\n\n</think>\n\nYes", ("", "Yes")),
            (MAY, "<think>never ends </thi", ("never ends </thi", "")),
            (MAY, " Yes </think> no", ("", " Yes </think> no")),
            (MAY, "<thing>", ("", "<thing>")),
            (MAY, "<thi", ("", "<thi")),
            (MAY, "", ("", "")),
            (MAY, "a <think>b</think>", ("", "a <think>b</think>")),
            (OPENED, "One.\n</think>\n\nYes <think>.", ("One.", "Yes <think>.")),
            (OPENED, "One </think", ("One </think", "")),
            (OPENED, "</think>Yes", ("", "Yes")),
            (EXPECTED, "<think>One</think>Yes", ("One", "Yes")),
            (EXPECTED, "One</think></think>", ("One", "</think>")),
        ],
    )
    def test_whole_and_in_pieces_of_every_length(
        self, reasoning: Reasoning, text: str, wanted: tuple[str, str]
    ) -> None:
        assert split_reasoning(reasoning, text) == wanted
        for length in range(1, len(text) + 1):
            pieces = [text[place : place + length] for place in range(0, len(text), length)]
            assert split(reasoning, *pieces) == wanted

    def test_reasoning_is_streamed(self) -> None:
        parser = ReasoningParser(OPENED)
        assert parser.push("One, ") == ("One,", "")
        assert parser.push("two") == (" two", "")
        assert parser.push(".\n</th") == (".", "")
        assert parser.push("ink>\nYes") == ("", "Yes")


class TestRecognition:
    @pytest.mark.parametrize(
        ("template", "kind"),
        [
            ("deepseek_r1", "deepseek_r1"),
            ("qwen3", "qwen3"),
            ("smollm3", "qwen3"),
            ("nemotron", "qwen3"),
            ("llama", None),
            ("chatml", None),
        ],
    )
    def test_by_the_template(self, template: str, kind: str | None, tmp_path: Path) -> None:
        tokenizer = tokenizer_of(tmp_path, TEMPLATES[template])
        reasoner = reasoner_of(tokenizer)
        assert (reasoner.kind if reasoner else None) == kind
        assert reasoner_of(tokenizer, "none") is None
        with pytest.raises(UsageError, match="auto, none or one of qwen3, deepseek_r1"):
            reasoner_of(tokenizer, "r1")

    def test_by_the_vocabulary(self, tmp_path: Path) -> None:
        tokenizer = tokenizer_of(tmp_path, TEMPLATES["chatml"], ["<think>", "</think>"])
        reasoner = reasoner_of(tokenizer)
        assert reasoner is not None
        assert reasoner.kind == "qwen3"

    def test_a_prompt_may_open_or_close_it(self, tmp_path: Path) -> None:
        tokenizer = tokenizer_of(tmp_path, TEMPLATES["qwen3"])
        user = {"role": "user", "content": "What is <think>?"}
        for kind in ("qwen3", "deepseek_r1"):
            reasoner, expected = Reasoner(tokenizer, kind), kind == "deepseek_r1"
            assert reasoner.of_prompt(tokenizer.encode_chat([user])) == Reasoning(False, expected)
            closed = tokenizer.encode_chat([user], variables={"enable_thinking": False})
            assert reasoner.of_prompt(closed) is None
            assert reasoner.of_prompt(tokenizer.encode("Hm.<think>\n")) == Reasoning(True, True)


@pytest.fixture(scope="module", params=["text", "plain", "special"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The tags are plain text, added tokens, or special tokens."""
    backend = byte_level()
    if request.param != "text":
        tags = ["<think>", "</think>", "<tool_call>"]
        backend.add_tokens([AddedToken(tag, special=request.param == "special", normalized=False) for tag in tags])
    return Model(write_model(tmp_path_factory.mktemp("model"), backend))


def sampler_of(model: Model, wanted: StructuredOutput, reasoning: Reasoning, **params: Any) -> Sampler:
    checked = SamplingParams(structured_output=wanted, reasoning=reasoning, **params)
    ends = model.tokenizer.eos_token_ids
    constraint = model.grammars.constraints(wanted, checked.max_tokens, ends, checked.reasoning)()
    return Sampler(checked, vocab_size=model.vocab_size, end_token_ids=ends, constraint=constraint)


def answer(model: Model, sampler: Sampler, preference: Any) -> str:
    """The text of an answer, as an engine shows it."""
    assert sampler.constraint is not None
    ids: list[int] = []
    while len(ids) < sampler.params.max_tokens and not sampler.must_end:
        token = sampler.sample(preference(len(ids)))
        if sampler.is_end(token) or sampler.is_cut or sampler.is_past_end:
            break
        ids.append(token)
    hidden = model.tokenizer.special_token_ids - sampler.constraint.shown
    return model.tokenizer.decode([token for token in ids if token not in hidden], False)


def writes(model: Model, text: str, after: Any) -> Any:
    ids = model.tokenizer.encode(text, add_special_tokens=False)

    def preference(step: int) -> np.ndarray:
        row: np.ndarray = after(step).copy()
        if step < len(ids):
            row[ids[step]] += 1000
        return row

    return preference


SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": False}
FORCED = [StructuredOutput(json_schema=SCHEMA), StructuredOutput(tool_calls=ToolCalls(TOOLS, "hermes", forced=True))]


class TestConstraint:
    @pytest.mark.parametrize("wanted", FORCED, ids=["schema", "calls"])
    @pytest.mark.parametrize("thought", ["Hm. <b> {", "", "</thin </", "and so on " * 40])
    def test_structure_begins_after_the_reasoning_and_ends_within_every_limit(
        self, model: Model, wanted: StructuredOutput, thought: str
    ) -> None:
        with pytest.raises(UsageError, match="too small") as error:
            sampler_of(model, wanted, OPENED, max_tokens=1)
        least = int(str(error.value).split()[-2])
        for limit in (*range(least, least + 12), least + 50, 400):
            sampler = sampler_of(model, wanted, OPENED, max_tokens=limit, temperature=0)
            ends = f"{thought}</think>\n\n" if len(thought) < 100 else thought
            text = answer(model, sampler, writes(model, ends, model.fond_of('"', limit)))
            thoughts, rest = split(OPENED, text)
            assert thoughts == thought.rstrip() or limit < 400 or ends == thought
            if wanted.tool_calls is None:
                check(rest, SCHEMA)
            else:
                assert read(wanted.tool_calls, rest)[2]

    @pytest.mark.parametrize("wanted", FORCED, ids=["schema", "calls"])
    def test_without_an_opened_part_there_is_only_structure(self, model: Model, wanted: StructuredOutput) -> None:
        for reasoning in (MAY, EXPECTED):
            sampler = sampler_of(model, wanted, reasoning, max_tokens=300, temperature=0)
            assert sampler.params.reasoning is None
            text = answer(model, sampler, writes(model, "<think>Hm.</think>", model.fond_of('"', 1)))
            assert "think" not in text

    @pytest.mark.parametrize("opened", [True, False])
    def test_calls_begin_only_after_the_reasoning(self, model: Model, opened: bool) -> None:
        calls = ToolCalls(TOOLS, "hermes")
        reasoning = OPENED if opened else MAY
        thought = '<tool_call> {"name": "ping"}'
        begun = f"{'' if opened else '<think>'}{thought}</think>"
        for after, content in (("So. ", "So. "), ("", "")):
            sampler = sampler_of(model, StructuredOutput(tool_calls=calls), reasoning, max_tokens=400, seed=1)
            text = answer(model, sampler, writes(model, f"{begun}{after}<tool_call>", model.fond_of('"', 1)))
            thoughts, rest = split(reasoning, text)
            got, found, complete = read(calls, rest)
            assert (thoughts, got) == (thought, content)
            assert complete
            assert found
            for _, arguments in found:
                json.loads(arguments)

    def test_free_answers_may_end_while_they_reason(self, model: Model) -> None:
        calls = StructuredOutput(tool_calls=ToolCalls(TOOLS, "hermes"))
        ends = np.zeros(model.vocab_size, np.float32)
        ends[list(model.tokenizer.eos_token_ids)] = 100
        for reasoning, begun in ((OPENED, "Hm"), (MAY, "<think>Hm"), (MAY, "<thi"), (MAY, "Hm")):
            sampler = sampler_of(model, calls, reasoning, max_tokens=50, temperature=0)
            assert answer(model, sampler, writes(model, begun, lambda step: ends)) == begun

    def test_free_answers_are_the_same_as_without_a_constraint(self, model: Model) -> None:
        calls = StructuredOutput(tool_calls=ToolCalls(TOOLS, "hermes"))
        preference = model.fond_of("é", 3)
        for reasoning in (OPENED, MAY):
            free = model.free_sampler(max_tokens=30, seed=4, top_p=0.7)
            bound = sampler_of(model, calls, reasoning, max_tokens=30, seed=4, top_p=0.7)
            for step in range(30):
                row = preference(step)
                token = free.sample(row)
                assert bound.sample(row) == token
                if free.is_end(token):
                    break

    def test_stop_strings_apply_only_before_calls(self, model: Model) -> None:
        sampler = sampler_of(model, FORCED[1], OPENED, max_tokens=300, temperature=0)
        assert sampler.constraint is not None
        assert sampler.constraint.unwatched_from is None
        ids = model.tokenizer.encode("Hm.</think>", add_special_tokens=False)
        preference = writes(model, "Hm.</think>", model.fond_of('"', 1))
        for step in range(len(ids)):
            sampler.sample(preference(step))
        assert sampler.constraint.unwatched_from == len(ids)


def tokenizer_of(path: Path, template: str, tokens: list[str] | None = None) -> Tokenizer:
    backend = byte_level()
    backend.add_tokens([AddedToken(token, normalized=False) for token in tokens or []])
    return Tokenizer.from_directory(write_model(path, backend, {"chat_template": template}))
