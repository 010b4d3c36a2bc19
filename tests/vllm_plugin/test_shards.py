"""Any number of ranks gives the bits of one. The ranks are threads here; vLLM is not needed."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from faquant import api
from faquant.checkpoint.model_config import ModelConfig, parse_config
from faquant.errors import UnsupportedError
from faquant.kernels.arrays import Floats
from faquant.kernels.scheme import AttentionScheme
from faquant.kernels.tables import DynamicTable, FloatTable, LinearTable, StaticTable
from faquant.model.decoder import Decoder, build_decoder
from faquant.model.ranks import Heads, part
from faquant.vllm.shards import Shard, gathered, with_inputs
from oracles.rank_threads import BACKEND, Exchange, Stored, results
from oracles.tiny_models import tiny_model

INTEROP = Path(__file__).parents[1] / "data" / "interop"
HEADS, KV_HEADS, DIM, LAYERS = 8, 2, 16, 2


def make_config(vocabulary: int = 50, intermediate: int = 192) -> ModelConfig:
    """Qwen2's, which has biases on q, k and v."""
    return parse_config(
        {
            "model_type": "qwen2",
            "vocab_size": vocabulary,
            "num_hidden_layers": LAYERS,
            "max_position_embeddings": 4096,
            "hidden_size": HEADS * DIM,
            "intermediate_size": intermediate,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "tie_word_embeddings": False,
        }
    )


class Random:
    """Tables of a random model, the same ones for every rank."""

    def __init__(self, config: ModelConfig, kind: str) -> None:
        self.config, self.kind = config, kind

    def table(self, name: str) -> LinearTable:
        n, k = self.config.linear_shape(name)
        random = np.random.default_rng(sum(name.encode()))
        bias = random.normal(size=n).astype(np.float32) if self.config.has_bias(name) else None
        weight = random.integers(-127, 128, (n, k), np.int8)
        scale = (random.random(n, np.float32) + 0.5) / np.float32(73 * k**0.5)
        if self.kind == "float":
            return FloatTable((weight * scale[:, None]).astype(np.float32), bias)
        if self.kind == "static":
            step, offset = np.array([0.03], np.float32), np.array([3], np.float32)
            constant = random.integers(-999, 999, n, np.int32)
            return StaticTable(weight, step, offset, constant, scale * step)
        return DynamicTable(weight, scale, bias, hadamard_block=64 if name.endswith("down_proj") else 0)

    def tensor(self, name: str) -> Floats:
        random = np.random.default_rng(sum(name.encode()))
        hidden = self.config.hidden_size
        if name == "model.embed_tokens.weight":
            return random.normal(size=(self.config.vocab_size, hidden)).astype(np.float32)
        return 1 + random.normal(size=hidden).astype(np.float32) / 4

    @property
    def schemes(self) -> list[AttentionScheme | None]:
        return [self._scheme()] * LAYERS

    def _scheme(self) -> AttentionScheme:
        generator = torch.Generator().manual_seed(3)

        def table(heads: int, last: int = DIM) -> Any:
            return torch.rand(heads, last, generator=generator).numpy() + np.float32(0.5)

        common: dict[str, Any] = {
            "k_center": table(KV_HEADS),
            "k_equalizer": table(KV_HEADS),
            "rotation_block": DIM,
            "rotation_sign": np.where(np.arange(DIM) % 3, 1, -1).astype(np.float32),
            "v_rotation_block": DIM,
        }
        if self.kind == "static":
            offset = np.rint(4 * table(KV_HEADS))
            common |= {"q_scale": table(HEADS, 1) / 30, "k_scale": table(KV_HEADS) / 30}
            common |= {"v_scale": table(KV_HEADS) / 30, "v_offset": offset, "quantized_sum": True}
        return AttentionScheme(HEADS, KV_HEADS, DIM, **common)

    def decoder(self, shard: Shard) -> Decoder:
        def linear(name: str) -> Any:
            return shard.linear(name, self.table(name))

        return build_decoder(self.config, BACKEND, self.tensor, linear, lambda name: False)


@pytest.mark.parametrize("kind", ["dynamic", "static", "float"])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_any_number_of_ranks_gives_the_bits_of_one(kind: str, ranks: int) -> None:
    """Also with sizes that cannot be divided, and with more ranks than key/value heads."""
    made = Random(make_config(vocabulary=50, intermediate=196 if kind != "dynamic" else 192), kind)
    (expected, stored), *_ = results(made, 1)
    assert np.isfinite(expected).all()
    for rank, (logits, of_layers) in enumerate(results(made, ranks)):
        assert np.array_equal(logits.view(np.uint32), expected.view(np.uint32))
        kv = Heads.of(made.config, rank, ranks).kv
        for ours, theirs in zip(of_layers, stored, strict=True):
            for mine, whole in zip(ours, theirs, strict=True):
                assert (mine is None) == (whole is None)
                assert mine is None or np.array_equal(mine, whole[:, kv.start : kv.stop])


@pytest.mark.parametrize("recipe", ["default", "precise", "static", "attention-only", "mindie", "mindie-plain"])
def test_checkpoints_of_every_recipe(recipe: str, tmp_path: Path) -> None:
    """Through their files, with two ranks and four."""
    tiny_model("llama3", tmp_path / "float")
    (tmp_path / "ids.jsonl").write_text(json.dumps({"token_ids": list(range(200))}))
    api.quantize(tmp_path / "float", tmp_path / "out", recipe, calibration=tmp_path / "ids.jsonl", device="cpu")
    check_ranks(Stored(tmp_path / "out"))


@pytest.mark.parametrize("name", sorted(path.parent.name for path in INTEROP.glob("*/config.json")))
def test_checkpoints_of_other_tools(name: str) -> None:
    """With biases, zero points, and layers without tables."""
    check_ranks(Stored(INTEROP / name))


def check_ranks(made: Stored) -> None:
    (expected, _), *_ = results(made, 1)
    assert np.isfinite(expected).all()
    for ranks in (2, 4):
        for logits, _ in results(made, ranks):
            assert np.array_equal(logits.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("kind", ["dynamic", "static", "float"])
def test_scales_of_shards(kind: str) -> None:
    """Close to one rank's answer, and equal on all ranks. With calibrated scales, the head's inputs round to the same
    integers."""
    made = Random(make_config(intermediate=256), kind)
    (expected, _), *_ = results(made, 1)
    (first, _), (second, _) = results(made, 2, sums=True)
    assert np.array_equal(first, second)
    assert np.array_equal(first, expected) == (kind == "static")
    assert np.abs(first - expected).max() < 0.15 * np.abs(expected).max()


def test_shards_that_cut_a_hadamard_block() -> None:
    made = Random(make_config(intermediate=192), "dynamic")
    name = "model.layers.0.mlp.down_proj"
    with pytest.raises(UnsupportedError, match=rf"2 ranks would cut {name}'s Hadamard blocks of 64 inputs"):
        with_inputs(made.table(name), name, 0, 2)


def test_heads_of_ranks() -> None:
    config = make_config()
    assert [Heads.of(config, rank, 4) for rank in range(4)] == [
        Heads(range(2), range(1)),
        Heads(range(2, 4), range(1)),
        Heads(range(4, 6), range(1, 2)),
        Heads(range(6, 8), range(1, 2)),
    ]
    assert Heads.of(config, 1, 2) == Heads(range(4, 8), range(1, 2))


@pytest.mark.parametrize("ranks", [3, 5, 16])
def test_heads_that_cannot_be_divided(ranks: int) -> None:
    with pytest.raises(UnsupportedError, match=rf"among {ranks} ranks. --tensor-parallel-size can be 1, 2, 4, 8\."):
        Heads.of(make_config(), 0, ranks)


@pytest.mark.parametrize(("size", "ranks"), [(8, 2), (7, 3), (2, 4), (5, 8)])
def test_parts_cover_all_columns_in_order(size: int, ranks: int) -> None:
    assert [column for rank in range(ranks) for column in part(size, rank, ranks)] == list(range(size))
    x = np.arange(3 * size, dtype=np.float32).reshape(3, size)
    exchange = Exchange(ranks)

    def run(rank: int) -> Floats:
        own = part(size, rank, ranks)
        return gathered(np.ascontiguousarray(x[:, own.start : own.stop]), size, ranks, exchange.of(rank))

    with ThreadPoolExecutor(ranks) as pool:
        assert all(np.array_equal(whole, x) for whole in pool.map(run, range(ranks)))


def test_one_rank_needs_no_gather() -> None:
    def unused(x: Floats) -> Floats:
        raise AssertionError

    made = Random(make_config(), "dynamic")
    gather: Callable[[Floats], Floats] = unused
    decoder = made.decoder(Shard(made.config, BACKEND, Heads.of(made.config, 0, 1), 0, 1, gather))
    assert all(layer.is_int8 for layer in decoder.layers)
