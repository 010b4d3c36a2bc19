"""vLLM's engine with the plugin, in this process, has the bits of faquant's engine."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from faquant.model.load import Model, load
from faquant.model.paged import Chunk, PagedDecoder
from faquant.model.rope import Rope

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

TEXT = "The history of the lighthouse begins with fire on a hill, and every sailor knew its keeper by name. "


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Model:
    return load(smollm2)


@pytest.fixture(scope="module")
def engine(smollm2: Path) -> Any:
    """Without a flag: config.json says that it is faquant's."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM

    return LLM(
        str(smollm2),
        max_model_len=2048,
        max_num_seqs=8,
        max_num_batched_tokens=512,
        distributed_executor_backend="uni",
        enforce_eager=True,
    )


@pytest.fixture
def logits(engine: Any) -> Iterator[list[torch.Tensor]]:
    """What the head returned, step by step."""
    plugin = engine.apply_model(lambda model: model)[0]
    real, seen = plugin.compute_logits, list[torch.Tensor]()

    def compute(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(real(hidden))
        return seen[-1].clone()

    plugin.compute_logits = compute
    yield seen
    plugin.compute_logits = real


def greedy(engine: Any, prompts: list[str], count: int) -> list[tuple[list[int], list[int]]]:
    """The tokens of each prompt and answer."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
    answers = engine.generate(prompts, sampling, use_tqdm=False)
    return [(list(each.prompt_token_ids), list(each.outputs[0].token_ids)) for each in answers]


def alone(model: Model, ids: list[int]) -> tuple[PagedDecoder, np.ndarray]:
    """The sequence in faquant, in one chunk: its pages in order, and all logits."""
    count = -(-len(ids) // 128)
    paged = PagedDecoder(model.decoder, model.make_pages(count, 128), model.backend)
    hidden = paged.run([Chunk(np.array(ids), 0, np.arange(count), Rope(model.config))])
    return paged, paged.logits(hidden)


def rows(logits: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in np.ascontiguousarray(logits)}


def test_logits_before_the_sampler(engine: Any, model: Model, logits: list[torch.Tensor]) -> None:
    """Of sequences of all lengths in one batch, with prompts cut into chunks: equal bits, equal greedy tokens."""
    found = greedy(engine, [TEXT * repeats for repeats in (1, 5, 12, 40)], 12)
    expected = set()
    for prompt, answer in found:
        _, whole = alone(model, prompt + answer[:-1])
        own = whole[len(prompt) - 1 :]
        assert answer == own.argmax(-1).tolist()
        expected |= rows(own)
    assert rows(torch.cat(logits).numpy()) >= expected


def test_a_prefix_from_the_cache(engine: Any, model: Model, logits: list[torch.Tensor]) -> None:
    """Pages that an earlier request has filled."""
    prompt = "A tale told twice. " + TEXT * 30
    first = greedy(engine, [prompt], 8)
    read = len(logits)
    assert greedy(engine, [prompt], 8) == first
    ((tokens, answer),) = first
    _, whole = alone(model, tokens + answer[:-1])
    again = logits[read:]
    assert len(again) == len(answer) < read
    assert rows(torch.cat(again).numpy()) == rows(whole[len(tokens) - 1 :])


def test_a_request_that_is_cancelled(engine: Any, model: Model) -> None:
    """Another one beside it goes on, and a third one takes its pages."""
    from vllm import SamplingParams

    core, sampling = engine.llm_engine, SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    for name in ("0", "1"):
        core.add_request(name, f"{name}. " + TEXT * 30, sampling)
    for _ in range(6):
        core.step()
    core.abort_request(["0"])
    core.add_request("2", "2. " + TEXT * 25, sampling)
    ended: dict[str, Any] = {}
    while core.has_unfinished_requests():
        ended |= {each.request_id: each for each in core.step() if each.finished}
    assert ended.keys() == {"1", "2"}
    for each in ended.values():
        prompt, answer = list(each.prompt_token_ids), list(each.outputs[0].token_ids)
        assert answer == alone(model, prompt + answer[:-1])[1][len(prompt) - 1 :].argmax(-1).tolist()


def test_stored_pages(engine: Any, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes of K and V and their scales in vLLM's pages, by the block table that the scheduler gave."""
    from faquant.vllm.attention import StepBuilder

    steps, real = [], StepBuilder.build
    monkeypatch.setattr(StepBuilder, "build", lambda *given, **more: steps.append(real(*given, **more)) or steps[-1])
    ((prompt, answer),) = greedy(engine, ["Where pages lie. " + TEXT * 20], 8)
    table, count = steps[-1].spans.block_tables[0], len(prompt) + len(answer) - 1
    ours, _ = alone(model, prompt + answer[:-1])
    theirs = engine.apply_model(lambda plugin: plugin._paged.pages)[0]
    for layer, pages in enumerate(theirs):
        expected = ours.pages[layer].read_bytes(np.arange(len(table)), count)
        for found, own in zip(pages.read_bytes(table, count), expected, strict=True):
            assert np.array_equal(found, own)


def test_cache_memory(engine: Any, model: Model) -> None:
    """As many tokens as faquant itself keeps in as much memory, but for the last page and vLLM's empty one."""
    config = engine.llm_engine.vllm_config.cache_config
    tokens = (config.num_gpu_blocks + 1) * config.block_size
    assert config.block_size == 128
    assert tokens * model.cache_bytes_per_token() > 1 << 30


def test_evaluate_through_vllm(smollm2: Path, tmp_path: Path) -> None:
    """The same KL as through faquant's engine, because the bits are the same."""
    import demo_model

    source = demo_model.fetch_demo_model()
    (tmp_path / "text.txt").write_text(TEXT * 30)
    command = [sys.executable, "-m", "faquant", "evaluate", str(smollm2), "--against", str(source), "--no-report"]
    command += ["--text", str(tmp_path / "text.txt"), "--quick", "--max-tokens", "256", "--json", "-"]
    found = {}
    for engine_name in ("faquant", "vllm"):
        ended = subprocess.run(
            [*command, "--engine", engine_name], stdout=subprocess.PIPE, text=True, timeout=380, check=True
        )
        (variants,) = (
            text["variants"] for text in json.loads(ended.stdout[ended.stdout.index("{") :])["texts"].values()
        )
        found[engine_name] = variants
    assert found["vllm"]["vLLM"]["kl_mean"] == pytest.approx(found["faquant"]["both"]["kl_mean"], rel=1e-9)
    assert found["vllm"]["vLLM"]["kl_mean"] > 0
