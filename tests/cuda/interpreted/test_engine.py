"""The engine on the GPU's kernels answers as on the CPU: prompts, decode steps, prefix cache, several answers."""

from pathlib import Path

import pytest

from faquant import LLM, SamplingParams
from faquant.quantization.pipeline import quantize
from faquant.recipe import RECIPES
from oracles.three_sequences import tokens
from oracles.tiny_models import tiny_model
from oracles.tiny_tokenizer import write_tokenizer

pytestmark = pytest.mark.cuda


def test_same_answers(tmp_path: Path) -> None:
    tiny_model("llama-bias", tmp_path / "float", num_hidden_layers=1)
    write_tokenizer(tmp_path / "float")
    quantize(tmp_path / "float", tmp_path / "out", RECIPES["default"], [tokens(60, seed=5).tolist()])
    prompts = [tokens(length, seed).tolist() for length, seed in ((3, 1), (19, 2))]
    drawn = SamplingParams(max_tokens=3, temperature=0.9, seed=4, n=2, ignore_eos=True)
    greedy = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True, logprobs=2)
    answers = []
    for device in ("cpu", "cuda"):
        llm = LLM(tmp_path / "out", device=device, max_num_batched_tokens=16, max_num_seqs=4, kv_cache_memory=1 << 20)
        answers.append([(one.token_ids, one.logprobs) for one in llm.generate(prompts, [drawn, greedy])])
    assert answers[1] == answers[0]
