"""The float model of either backend against transformers: prompts, chunks, decoding through shuffled cache pages,
every kind of model."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from faquant.checkpoint.model_config import load_config
from faquant.kernels.backend import make_backend
from faquant.kernels.torch_backend import TorchBackend
from faquant.model.load import Model, load
from faquant.model.paged import Chunk, PagedDecoder
from faquant.model.rope import Rope
from oracles.tiny_models import COMMON, KINDS, spell_as_before_v5, tiny_model

TOLERANCE = 1e-4
VOCABULARY = COMMON["vocab_size"]
Pair = tuple[PreTrainedModel, Model]


def tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def expected(oracle: PreTrainedModel, ids: Tensor, position: int = 0) -> Tensor:
    return oracle(ids[None], position_ids=torch.arange(position, position + len(ids))[None], use_cache=False).logits[0]


class Run:
    """Sequences in one cache, with pages in random order."""

    def __init__(self, model: Model, sequences: list[Tensor], page_size: int, position: int = 0) -> None:
        counts = [-(-len(ids) // page_size) for ids in sequences]
        self.model = model
        self.sequences = sequences
        self.position = position
        self.pages = model.make_pages(sum(counts) + 3, page_size)
        order = torch.randperm(sum(counts) + 3, generator=torch.Generator().manual_seed(1))
        self.tables = [table.numpy() for table in order[: sum(counts)].split(counts)]
        self.decoder = PagedDecoder(model.decoder, self.pages, model.backend)
        self.done = [0] * len(sequences)
        self.logits = [torch.empty(0, VOCABULARY)] * len(sequences)

    def step(self, counts: list[int]) -> None:
        """Compute the next counts[i] tokens of each sequence, where any are left, in one batch."""
        chunks, owners = [], []
        for i, (ids, count) in enumerate(zip(self.sequences, counts, strict=True)):
            some = ids[self.done[i] : self.done[i] + count]
            if len(some):
                rope = Rope(self.model.config, self.position + len(ids))
                chunks.append(Chunk(some.numpy(), self.done[i], self.tables[i], rope, self.position))
                owners.append(i)
        logits = torch.as_tensor(self.model.decoder.logits(self.decoder.run(chunks)))
        for i, chunk, part in zip(owners, chunks, logits.split([len(c.tokens) for c in chunks]), strict=True):
            self.logits[i] = torch.cat((self.logits[i], part))
            self.done[i] += len(chunk.tokens)


def prompt_logits(model: Model, ids: Tensor, position: int = 0) -> Tensor:
    run = Run(model, [ids], 16, position)
    run.step([len(ids)])
    return run.logits[0]


@pytest.fixture(params=["cpu", "torch"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def oracles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[PreTrainedModel, Path]]:
    made: dict[str, tuple[PreTrainedModel, Path]] = {}

    def make(kind: str) -> tuple[PreTrainedModel, Path]:
        if kind not in made:
            directory = tmp_path_factory.mktemp(kind)
            made[kind] = tiny_model(kind, directory), directory
        return made[kind]

    return make


@pytest.fixture
def pair(oracles: Callable[[str], tuple[PreTrainedModel, Path]], backend: str) -> Callable[[str], Pair]:
    def make(kind: str) -> Pair:
        oracle, directory = oracles(kind)
        return oracle, load(directory, backend=make_backend(backend))

    return make


def assert_same(ours: Tensor, oracle: Tensor) -> None:
    torch.testing.assert_close(ours, oracle, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 63, 100])
def test_prompt_logits_equal_transformers(kind: str, length: int, pair: Callable[[str], Pair]) -> None:
    oracle, model = pair(kind)
    ids = tokens(length)
    assert_same(prompt_logits(model, ids), expected(oracle, ids))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("page_size", [5, 16, 64])
def test_chunks_then_single_tokens_in_a_batch_equal_transformers(
    kind: str, page_size: int, pair: Callable[[str], Pair]
) -> None:
    oracle, model = pair(kind)
    sequences = [tokens(length, seed) for seed, length in enumerate((1, 17, 50, 79))]
    run = Run(model, sequences, page_size)
    # A whole prompt together with chunks of others, then a prompt that starts while others decode.
    for counts in ([1, 9, 33, 0], [0, 1, 3, 20], [0, 5, 1, 41], *[[0, 1, 1, 1]] * 18):
        run.step(counts)
    assert run.done == [1, 17, 50, 79]
    for ids, logits in zip(sequences, run.logits, strict=True):
        assert_same(logits, expected(oracle, ids))


@pytest.mark.parametrize("kind", ["llama3", "smollm", "mistral-window", "qwen2-window", "qwen3"])
def test_greedy_decoding_gives_the_tokens_of_generate(kind: str, pair: Callable[[str], Pair]) -> None:
    oracle, model = pair(kind)
    prompt, new = tokens(30, seed=7), 20
    with torch.no_grad():
        wanted = oracle.generate(prompt[None], do_sample=False, min_new_tokens=new, max_new_tokens=new)[0]
    run = Run(model, [wanted], 16)
    run.step([30])
    for _ in range(new - 1):
        run.step([1])
    # generate takes no end token before it may stop.
    logits = run.logits[0][29:].index_fill(1, torch.tensor(model.config.eos_token_ids), -math.inf)
    assert torch.equal(logits.argmax(-1), wanted[30:])


LONG_ROPES = {
    "default": {"rope_type": "default", "rope_theta": 1e6},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 512, "rope_theta": 1e6},
    "llama3": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
        "rope_theta": 500000.0,
    },
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0] * 8,
        "long_factor": [1.0, 1.5, 3.0, 6.0, 7.0, 8.0, 16.0, 32.0],
        "original_max_position_embeddings": 64,
    },
}


SCALED = {"default": 512, "linear": 512, "yarn": 16384, "llama3": 16384, "longrope": 2048}


@pytest.mark.parametrize("rope", LONG_ROPES)
def test_logits_at_the_end_of_the_scaled_context_equal_transformers(rope: str, backend: str, tmp_path: Path) -> None:
    context = {"default": 512, "linear": 128, "yarn": 512, "llama3": 16384, "longrope": 2048}[rope]
    oracle = tiny_model(
        "llama3", tmp_path, head_dim=16, max_position_embeddings=context, rope_parameters=LONG_ROPES[rope]
    )
    model = load(tmp_path, backend=make_backend(backend))
    assert model.max_position == SCALED[rope]
    ids = tokens(70)
    position = model.max_position - len(ids)
    logits = prompt_logits(model, ids, position)
    assert_same(logits, expected(oracle, ids, position))
    assert (logits - prompt_logits(model, ids)).abs().max() < 0.05, "RoPE is relative"


FAR = ["smollm3", "smollm3-window", "granite", "ministral", "phi3", "phi4-mini", "olmo3", "gemma3"]


@pytest.mark.parametrize("kind", FAR)
def test_each_kind_of_layers_ends_its_context_as_in_transformers(kind: str, pair: Callable[[str], Pair]) -> None:
    """With windows, layers without RoPE, two bases, and scaling in a part of the layers."""
    oracle, model = pair(kind)
    ids = tokens(70)
    position = model.max_position - len(ids)
    assert_same(prompt_logits(model, ids, position), expected(oracle, ids, position))


@pytest.mark.parametrize("length", [20, 32, 33, 100])
def test_dynamic_rope_fixed_for_a_request_equals_transformers_prompt_of_that_length(
    length: int, backend: str, tmp_path: Path
) -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0}
    oracle = tiny_model("llama2", tmp_path, max_position_embeddings=32, rope_parameters=rope)
    model = load(tmp_path, backend=make_backend(backend))
    assert model.max_position == 128
    ids = tokens(length)
    wanted = expected(oracle, ids)
    assert_same(prompt_logits(model, ids), wanted)
    run = Run(model, [ids], 16)
    for _ in ids:
        run.step([1])
    assert_same(run.logits[0], wanted)


def test_dynamic_rope_gives_each_request_of_a_batch_its_own_frequencies(backend: str, tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0}
    tiny_model("llama2", tmp_path, max_position_embeddings=32, rope_parameters=rope)
    model = load(tmp_path, backend=make_backend(backend))
    sequences = [tokens(20), tokens(60), tokens(110)]
    run = Run(model, sequences, 16)
    for _ in range(4):
        run.step([7, 25, 30])
    for ids, logits in zip(sequences, run.logits, strict=True):
        assert_same(logits, prompt_logits(model, ids))


@pytest.mark.parametrize("length", [63, 64, 65, 200])
def test_longrope_s_factors_are_chosen_by_the_length_of_a_request(length: int, backend: str, tmp_path: Path) -> None:
    """All of its keys have the same, also those from before the original context ended. The rotation is a part of each
    head, and weights are fused."""
    oracle = tiny_model("phi4-mini", tmp_path)
    model = load(tmp_path, backend=make_backend(backend))
    ids = tokens(length)
    wanted = expected(oracle, ids)
    assert_same(prompt_logits(model, ids), wanted)
    run = Run(model, [ids], 16)
    run.step([60])
    while run.done[0] < length:
        run.step([1 if run.done[0] < 70 else 32])
    assert_same(run.logits[0], wanted)


def test_windows_of_chosen_layers_equal_transformers(backend: str, tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    oracle = tiny_model("qwen3", tmp_path, use_sliding_window=True, sliding_window=16, layer_types=kinds)
    model = load(tmp_path, backend=make_backend(backend))
    assert model.config.sliding_windows == (None, 16, None)
    ids = tokens(60)
    assert_same(prompt_logits(model, ids), expected(oracle, ids))


def test_a_window_of_one_token_equals_transformers(backend: str, tmp_path: Path) -> None:
    oracle = tiny_model("mistral", tmp_path, sliding_window=1)
    ids = tokens(20)
    assert_same(prompt_logits(load(tmp_path, backend=make_backend(backend)), ids), expected(oracle, ids))


@pytest.mark.parametrize("kind", ["llama2", "smollm", "qwen2", "qwen3-bias"])
def test_sharded_checkpoints_give_the_same_logits(
    kind: str, backend: str, tmp_path: Path, pair: Callable[[str], Pair]
) -> None:
    tiny_model(kind, tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    ids = tokens(40)
    sharded = load(tmp_path, backend=make_backend(backend))
    assert torch.equal(prompt_logits(sharded, ids), prompt_logits(pair(kind)[1], ids))


@pytest.mark.parametrize("key", ["type", "rope_type"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_older_spelling_of_the_configuration_means_the_same(kind: str, key: str, tmp_path: Path) -> None:
    tiny_model(kind, tmp_path)
    new = load_config(tmp_path)
    spell_as_before_v5(tmp_path, key)
    assert load_config(tmp_path) == new


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["llama-bias", "smollm", "qwen3"])
def test_weights_of_16_bits_compute_in_float32(kind: str, dtype: str, backend: str, tmp_path: Path) -> None:
    oracle = tiny_model(kind, tmp_path, dtype).float()
    ids = tokens(40)
    logits = prompt_logits(load(tmp_path, backend=make_backend(backend)), ids)
    assert logits.dtype == torch.float32
    assert_same(logits, expected(oracle, ids))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["llama3", "llama-bias", "qwen3"])
def test_torch_s_decoder_repeats_every_bit_of_transformers(kind: str, dtype: str, tmp_path: Path) -> None:
    """Calibration sees the same as other tools if attention and RoPE's tables are computed as in them."""
    oracle = tiny_model(kind, tmp_path, dtype)
    model = load(tmp_path, backend=TorchBackend(getattr(torch, dtype)))
    ids = tokens(33)

    def eager(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        group = q.shape[1] // k.shape[1]
        q, k, v = q.transpose(0, 1), *(x.transpose(0, 1).repeat_interleave(group, dim=0) for x in (k, v))
        mask = torch.full((len(ids), len(ids)), torch.finfo(q.dtype).min, dtype=q.dtype).triu(1)
        scores = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5 + mask
        return (scores.softmax(-1, dtype=torch.float32).to(q.dtype) @ v).transpose(0, 1)

    cos, sin = oracle.model.rotary_emb(torch.empty(1), torch.arange(len(ids))[None])
    tables = cos[0, :, None], sin[0, :, None]
    logits = model.decoder.logits(model.decoder.hidden(ids.numpy(), tables, eager))
    assert logits.dtype == getattr(torch, dtype)
    assert torch.equal(logits, expected(oracle, ids))
    for table, of_ours in zip(tables, Rope(model.config).tables(torch.arange(len(ids)).numpy()), strict=True):
        torch.testing.assert_close(torch.from_numpy(of_ours), table, rtol=0, atol=4e-6)
