"""The plugin for vLLM on a GPU has the bits of faquant on the CPU. vLLM is a stand-in, and kernels are interpreted."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from faquant.kernels.backend import make_backend
from faquant.kernels.tables import DynamicTable, FloatTable, LinearTable
from faquant.model.load import load
from faquant.model.paged import Chunk, PagedDecoder
from faquant.model.ranks import Heads, part
from faquant.model.rope import Rope
from faquant.quantization.pipeline import quantize
from faquant.recipe import RECIPES
from oracles.three_sequences import tokens
from oracles.tiny_models import tiny_model
from oracles.vllm_stand_in import StandIn

pytestmark = pytest.mark.cuda

LENGTHS = 4, 18
PAGES = [4], [1]
STEPS = [(2, 0), (1, 17), (1, 1)]
"""New tokens of two sequences: prompts, for both kernels of attention, and single tokens, as a graph has them."""


@pytest.fixture(scope="module", params=["default", "attention-only"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers that are fused, or float linears and so layers step by step; and head_dim 24, which a CPU pads."""
    folder = tmp_path_factory.mktemp(request.param)
    tiny_model("qwen3", folder / "float", num_hidden_layers=2)
    quantize(folder / "float", folder / "out", RECIPES[request.param], [tokens(60, seed=5).tolist()])
    return folder / "out"


@pytest.fixture
def vllm() -> Iterator[StandIn]:
    found = StandIn(is_cuda=True)
    with found.installed():
        yield found


def ids_of(sequence: int) -> Tensor:
    return tokens(LENGTHS[sequence], seed=sequence)


def expected_hidden(directory: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Hidden states and logits of each whole sequence, by faquant on the CPU."""
    model = load(directory)
    hidden, logits = [], []
    for i, length in enumerate(LENGTHS):
        paged = PagedDecoder(model.decoder, model.make_pages(2, 128), model.backend)
        hidden.append(paged.run([Chunk(ids_of(i).numpy(), 0, np.arange(2)[: -(-length // 128)], Rope(model.config))]))
        logits.append(paged.logits(hidden[-1]))
    return hidden, logits


def same_bits(a: Tensor, b: np.ndarray) -> bool:
    return torch.equal(a.view(torch.int32), torch.from_numpy(np.ascontiguousarray(b)).view(torch.int32))


@pytest.mark.timeout(400)
@pytest.mark.usefixtures("exact_fma")
def test_steps_have_the_bits_of_faquant_on_the_cpu(directory: Path, vllm: StandIn) -> None:
    from faquant.vllm.attention import StepBuilder
    from faquant.vllm.model import FaquantModel

    config = vllm.config(directory, max_model_len=4)
    model = FaquantModel(vllm_config=config)
    layers = config.compilation_config.static_forward_context

    # Before there is a cache vLLM measures memory, here with a prompt of the longest context and a shorter one.
    measured = model(torch.zeros(5, dtype=torch.int32), torch.zeros(5, dtype=torch.int64))
    assert measured.shape == (5, model.config.hidden_size)

    vllm.bind_pages(layers, config, num_pages=2)  # as vLLM may before the real ones
    assert model._paged.pages[0].num_pages == 2
    whole = vllm.bind_pages(layers, config, num_pages=6)
    spec = next(iter(layers.values())).get_kv_cache_spec(config)
    builder = StepBuilder(spec, list(layers), config, torch.device("cpu"))
    hidden, logits = expected_hidden(directory)
    done = [0, 0]
    for counts in STEPS:
        running = [i for i in range(2) if counts[i]]
        given = vllm.metadata([(counts[i], done[i], PAGES[i]) for i in running])
        step = builder.build(0, given)
        assert isinstance(step.spans.block_tables, Tensor)
        vllm.context.attn_metadata = dict.fromkeys(layers, step)
        rows = [slice(done[i], done[i] + counts[i]) for i in running]
        new = torch.cat([ids_of(i)[some] for i, some in zip(running, rows, strict=True)]).int()
        found = model(torch.cat([new, new[:1]]), torch.zeros(len(new) + 1, dtype=torch.int64))
        assert same_bits(found, np.concatenate([hidden[i][some] for i, some in zip(running, rows, strict=True)]))
        scores = model.compute_logits(found)
        assert same_bits(scores, np.concatenate([logits[i][some] for i, some in zip(running, rows, strict=True)]))
        done = [before + count for before, count in zip(done, counts, strict=True)]
    used = {page for pages in PAGES for page in pages}
    for page in range(6):
        assert (whole[page] == 0x7F).all() == (page not in used)


def test_lengths_with_speculated_tokens(vllm: StandIn) -> None:
    """The CPU has only an upper bound then."""
    from faquant.vllm.attention import StepBuilder

    config = vllm.config(Path(), max_model_len=200)
    builder = StepBuilder(SimpleNamespace(block_size=128), [], config, torch.device("cpu"))
    given = vllm.metadata([(3, 20, [1])])
    given.seq_lens = torch.tensor([21], dtype=torch.int32)
    assert builder.build(0, given).spans.tokens_starts.tolist() == [[3, 20]]
    config.speculative_config = object()
    assert builder.build(0, given).spans.tokens_starts.tolist() == [[3, 18]]


class Turns:
    """all_gather of ranks that are threads. One runs at a time, because Triton's interpreter has one state for all."""

    def __init__(self, ranks: int) -> None:
        self._parts: dict[int, Tensor] = {}
        self.turn = threading.Lock()
        self._barrier = threading.Barrier(ranks, timeout=60)

    def gather(self, rank: int, x: Tensor) -> Tensor:
        self._parts[rank] = x
        self._wait()
        whole = torch.cat([self._parts[each] for each in range(len(self._parts))], dim=1)
        self._wait()
        return whole

    def _wait(self) -> None:
        self.turn.release()
        self._barrier.wait()
        self.turn.acquire()


@pytest.mark.usefixtures("exact_fma")
@pytest.mark.parametrize("kind", ["int8", "float"])
@pytest.mark.parametrize("name", ["o_proj", "down_proj", "lm_head"])
def test_linears_of_three_ranks(name: str, kind: str, vllm: StandIn) -> None:
    """Of tensors, and with sizes that three ranks cannot divide."""
    from faquant.vllm.shards import Shard

    inputs, outputs, ranks = 208, 100, 3
    random = np.random.default_rng(0)
    weight = random.integers(-127, 128, (outputs, inputs), np.int8)
    scale = np.linspace(0.01, 0.02, outputs, dtype=np.float32)
    table: LinearTable = DynamicTable(weight, scale, scale, hadamard_block=16)
    if kind == "float":
        table = FloatTable((weight * scale[:, None]).astype(np.float32))
    backend, turns = make_backend("cuda"), Turns(ranks)
    x = torch.from_numpy(random.normal(size=(5, inputs)).astype(np.float32))
    expected = backend.linear(table)(x)
    config: Any = SimpleNamespace(head_dim=16, linear_shape=lambda name: (outputs, inputs))

    def run(rank: int) -> Tensor:
        with turns.turn:
            shard = Shard(config, backend, Heads(range(1), range(1)), rank, ranks, lambda x: turns.gather(rank, x))
            own = part(inputs, rank, ranks) if name != "lm_head" else range(inputs)
            return shard.linear(f"model.{name}", table)(x[:, own.start : own.stop].contiguous())

    with ThreadPoolExecutor(ranks) as pool:
        for found in pool.map(run, range(ranks)):
            assert same_bits(found.contiguous(), expected.numpy())
