"""The API of `import faquant`, as shown in the README."""

import json
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import faquant
from faquant.errors import OutputError, UsageError
from faquant.structured.structured_output import StructuredOutput
from oracles.tiny_models import tiny_model
from oracles.tiny_tokenizer import VOCAB_SIZE, write_tokenizer


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("api") / "float"
    tiny_model("qwen2", directory, vocab_size=VOCAB_SIZE, max_position_embeddings=2048)
    write_tokenizer(directory)
    return directory


def test_quantize_evaluate_and_generate(source: Path, tmp_path: Path) -> None:
    calibration = tmp_path / "calibration.txt"
    calibration.write_text("Calibrate on this. " * 20)
    steps: list[tuple[int, int]] = []
    tokens = faquant.quantize(
        str(source), tmp_path / "out", calibration=calibration, progress=lambda done, total: steps.append((done, total))
    )
    assert tokens == 380
    assert steps[-1] == (4, 4)
    report = faquant.evaluate(tmp_path / "out", source, {"own": "Measure on this. " * 10}, max_tokens=64)
    assert report.texts["own"]["both"].tokens == 64
    assert report.saturation == {}
    llm = faquant.LLM(tmp_path / "out")
    params = faquant.SamplingParams(max_tokens=5, temperature=0.0, ignore_eos=True)
    alone = [llm.generate(prompt, params)[0] for prompt in ("Hello", "A longer prompt than that")]
    together = llm.generate(["Hello", "A longer prompt than that"], params)
    assert together == alone
    assert all(answer.logprobs is None for answer in together)
    assert all(len(answer.token_ids) == 5 and answer.finish_reason == "length" for answer in together)
    assert "".join(llm.stream("Hello", params)) == alone[0].text
    pieces = llm.stream("Hello", params)
    begun = next(pieces)
    llm.generate("Something else", replace(params, max_tokens=50))  # which finishes the other answer too
    assert begun + "".join(pieces) == alone[0].text
    scored = llm.generate("Hello", faquant.SamplingParams(max_tokens=3, temperature=0, ignore_eos=True, logprobs=2))[0]
    assert scored.logprobs is not None
    assert [likeliest[0][0] for _, likeliest in scored.logprobs] == list(scored.token_ids)
    hi, ho = ([{"role": "user", "content": text}] for text in ("Hi", "Ho"))
    (one,) = llm.chat(hi, params)
    assert one.prompt_token_ids == tuple(llm.tokenizer.encode_chat(hi))
    assert [answer.token_ids for answer in llm.chat([ho, hi], params)][1] == one.token_ids


def test_chat_splits_off_the_reasoning(source: Path, tmp_path: Path) -> None:
    opened = tmp_path / "opened"
    shutil.copytree(source, opened)
    (opened / "chat_template.jinja").write_text(
        "{{ messages[0].content }}{% if add_generation_prompt %}<think>\n{% endif %}"
    )
    hi = [{"role": "user", "content": "Hi"}]
    llm = faquant.LLM(opened)
    for answer in llm.chat([hi, hi], faquant.SamplingParams(max_tokens=9, n=2, ignore_eos=True)):
        assert answer.text == ""
        assert llm.tokenizer.decode(answer.token_ids).lstrip().startswith(answer.reasoning)
        assert answer.reasoning
    form = StructuredOutput(json_schema={"enum": ["yes", "no"]})
    for answer in llm.chat(hi, faquant.SamplingParams(max_tokens=30, n=3, structured_output=form)):
        assert json.loads(answer.text) in ("yes", "no")
        assert answer.reasoning
    (plain,) = faquant.LLM(source).chat(hi, faquant.SamplingParams(max_tokens=9, ignore_eos=True))
    assert plain.reasoning == ""


def test_chat_calls_tools(source: Path) -> None:
    llm = faquant.LLM(source)
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}}, "required": ["n"]}
    tools = [{"type": "function", "function": {"name": name, "parameters": schema}} for name in ("one", "two")]
    asked = [{"role": "user", "content": "Hi"}]
    params = faquant.SamplingParams(max_tokens=400, seed=1, n=2)
    for choice, names in (("required", {"one", "two"}), ("two", {"two"})):
        for answer in llm.chat(asked, params, tools=tools, tool_choice=choice):
            assert (answer.text, answer.finish_reason) == ("", "tool_calls")
            for call in answer.tool_calls:
                assert call.name in names
                jsonschema.validate(json.loads(call.arguments), {**schema, "additionalProperties": True})
    (free,) = llm.chat(asked, faquant.SamplingParams(max_tokens=9), tools=tools, tool_choice="none")
    assert free.tool_calls == ()
    assert free.prompt_token_ids == tuple(llm.tokenizer.encode_chat(asked))
    (auto,) = llm.chat(asked, faquant.SamplingParams(max_tokens=9), tools=tools)
    assert "two" in llm.tokenizer.decode(auto.prompt_token_ids), "the tools are shown"
    for wrong in ({"tools": [{}]}, {"tools": ["one"]}, {"tools": tools, "tool_choice": "three"}):
        with pytest.raises(UsageError):
            llm.chat(asked, params, **wrong)  # type: ignore[arg-type]
    for empty in ([], "Hi", {"role": "user"}, [[]], [asked[0], asked], [{"content": "Hi"}], None):
        with pytest.raises(UsageError, match="list of one or more messages"):
            llm.chat(empty)  # type: ignore[arg-type]
    for wrong_params in ([params, None], {"max_tokens": 3}, 5):
        with pytest.raises(UsageError, match="params"):
            llm.chat([asked, asked], wrong_params)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="list of prompts"):
        llm.generate(None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="max_seqs"):
        faquant.LLM(source, max_seqs=3)
    with pytest.raises(UsageError, match="no tools"):
        llm.chat(asked, tool_choice="required")


def test_serving_counts_what_the_calibration_does_not_fit(source: Path, tmp_path: Path) -> None:
    calibration = tmp_path / "calibration.txt"
    calibration.write_text("Calibrate on this. " * 20)
    faquant.quantize(source, tmp_path / "out", "static", calibration)
    llm = faquant.LLM(tmp_path / "out")
    params = faquant.SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)
    llm.generate("Calibrate on this. " * 4, params)
    fitting = llm.saturation()
    assert fitting.keys() == {"k", "v"}
    assert max(fitting.values()) < 0.01
    weights = tmp_path / "out" / "quant_model_weight_w8a8.safetensors"
    tensors = load_file(weights)
    halved = {name: tensor * 0.5 if name.endswith("fa_k.scale") else tensor for name, tensor in tensors.items()}
    assert sum(name.endswith("fa_k.scale") for name in halved) == 3
    save_file(halved, weights)
    llm = faquant.LLM(tmp_path / "out")
    llm.generate("Calibrate on this. " * 4, params)
    assert llm.saturation()["k"] > 0.01
    assert llm.saturation()["v"] == pytest.approx(fitting["v"], abs=0.01)


def test_long_prompts_are_fed_in_chunks_to_the_same_effect(source: Path) -> None:
    params = faquant.SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
    whole = faquant.LLM(source).generate([list(range(100))], params)
    assert faquant.LLM(source, max_num_seqs=2, max_num_batched_tokens=7).generate([list(range(100))], params) == whole


def test_a_prompt_is_text_or_integers_of_any_kind(source: Path) -> None:
    llm = faquant.LLM(source)
    params = faquant.SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
    expected = llm.generate([[1, 2, 3]], params)
    assert llm.generate([np.array([1, 2, 3])], params) == llm.generate([torch.tensor([1, 2, 3])], params) == expected
    with pytest.raises(UsageError, match="text or token ids"):
        llm.generate([[1.0, 2.0]], params)


def test_a_stop_string_ends_the_answer_before_it(source: Path) -> None:
    llm = faquant.LLM(source)
    free = llm.generate("Hello", faquant.SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True))[0]
    stop = free.text[4:6]
    stopped = llm.generate("Hello", faquant.SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True, stop=stop))
    assert stopped[0].text == free.text[: free.text.index(stop)]
    assert stopped[0].finish_reason == "stop"


@pytest.mark.parametrize("speculative_tokens", [0, 3])
def test_answers_have_the_structure_asked_for(source: Path, speculative_tokens: int) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "warm": {"type": "boolean"}},
        "required": ["city", "days", "warm"],
        "additionalProperties": False,
    }
    llm = faquant.LLM(source, speculative_tokens=speculative_tokens)
    for max_tokens in (40, 60, 200):
        params = faquant.SamplingParams(
            max_tokens=max_tokens, seed=1, n=4, structured_output=faquant.StructuredOutput(json_schema=schema)
        )
        answers = llm.generate("Weather: {city", params)
        assert {answer.finish_reason for answer in answers} == {"stop"}
        for answer in answers:
            assert json.loads(answer.text).keys() == {"city", "days", "warm"}
            assert len(answer.token_ids) <= max_tokens
    with pytest.raises(UsageError, match="too small for the requested structure"):
        llm.generate("Weather", faquant.SamplingParams(max_tokens=3, structured_output=params.structured_output))


def test_what_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="quantise"):
        faquant.quantise  # noqa: B018


def test_auto_looks_for_a_recipe_and_leaves_what_it_tried_in_the_report(source: Path, tmp_path: Path) -> None:
    calibration = tmp_path / "calibration.txt"
    calibration.write_text("Calibrate on this. " * 20)
    tried: list[str] = []
    faquant.quantize(
        source,
        tmp_path / "out",
        "auto",
        calibration,
        max_kl=0.5,
        search_progress=lambda what, done, total: tried.append(what),
    )
    assert {"attention", "linears", "the whole"} <= set(tried)
    report = faquant.evaluate(tmp_path / "out", source, {"own": "Measure on this. " * 10}, max_tokens=64)
    assert report.recipe == "auto"
    assert report.search is not None
    assert report.search["max_kl"] == 0.5
    assert sum(row["chosen"] for row in report.search["candidates"]) == 1
    assert "both together" in report.write(tmp_path / "out").read_text(encoding="utf-8")
    with pytest.raises(UsageError, match="recipe 'auto'"):
        faquant.quantize(source, tmp_path / "other", "static", calibration, max_kl=0.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calibration.txt", "out"]


def test_a_search_that_was_cut_off_goes_on_with_the_same_command(source: Path, tmp_path: Path) -> None:
    calibration = tmp_path / "calibration.txt"
    calibration.write_text("Calibrate on this. " * 20)

    def run(stop_at: str, **options: bool) -> list[str]:
        tried: list[str] = []

        def progress(what: str, done: int, total: int) -> None:
            tried.append(what)
            if what == stop_at:
                raise KeyboardInterrupt

        with suppress(KeyboardInterrupt):
            faquant.quantize(source, tmp_path / "out", "auto", calibration, search_progress=progress, **options)
        return tried

    assert run("linears")[-1] == "linears"
    assert run("the whole")[0] == "linears"
    assert run("attention", restart=True) == ["attention"]
    assert run("linears")[0] == "attention"
    assert run("")[0] == "linears"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calibration.txt", "out"]


def test_a_search_is_not_begun_where_nothing_can_be_written(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(OutputError, match="not empty"):
        faquant.quantize(
            source, tmp_path / "out", "auto", search_progress=lambda what, done, total: pytest.fail("searched")
        )
