"""Layers in one C++ call have the same bits as step by step, and mismatches are refused."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from faquant.kernels import _C
from faquant.kernels import isa as cpu
from faquant.kernels.arrays import Floats
from faquant.kernels.backend import Linear
from faquant.kernels.modules import DynamicLinear, FloatLinear, RMSNorm, StaticLinear
from faquant.kernels.pages import FloatPages
from faquant.model.decoder import Decoder
from faquant.model.paged import Batch, Chunk, PagedDecoder, together
from faquant.model.rope import Rope
from oracles.pages import poison
from oracles.random_decoder import BACKEND, MODELS, SCHEMES, VOCABULARY, Cache, Parts, parts, tokens
from oracles.threads import set_threads

LENGTHS = (1, 150, 40)


def step_by_step(decoder: Decoder, cache: Cache, chunks: list[Chunk]) -> Floats:
    batch = Batch(chunks, cache.page_size)
    windows = decoder.config.sliding_windows
    return decoder.hidden(
        batch.tokens, batch.tables, lambda i, q, k, v: batch.attend(cache.pages[i], windows[i], q, k, v)
    )


def steps(cache: Cache, rope: Rope) -> list[list[Chunk]]:
    """Prompts of three sequences, then some tokens for each."""
    tables = [cache.table(length + 8) for length in LENGTHS]
    at = list(zip(LENGTHS, tables, strict=True))
    return [
        [Chunk(tokens(length, seed=1), 0, table, rope) for length, table in at],
        [Chunk(tokens(1, seed=2), length, table, rope) for length, table in at],
        [Chunk(tokens(7, seed=3), length + 1, table, rope) for length, table in at[1:]],
    ]


def same_both_ways(made: Parts, prepare: Callable[[Cache], None] = lambda cache: None, isa: str | None = None) -> None:
    rope = Rope(made[0].config)
    fused, plain = Cache(made, 128, 600), Cache(made, 128, 600)
    for cache in (fused, plain):
        prepare(cache)
    paged = PagedDecoder(made[0], fused.pages, BACKEND, isa)
    for some, same in zip(steps(fused, rope), steps(plain, rope), strict=True):
        assert np.array_equal(paged.run(some), step_by_step(made[0], plain, same))
    for a, b in zip(fused.pages, plain.pages, strict=True):
        assert a.saturation.written == b.saturation.written
        assert a.saturation.saturated == b.saturation.saturated
        assert np.array_equal(a.k.view(np.uint8), b.k.view(np.uint8))
        assert np.array_equal(a.v.view(np.uint8), b.v.view(np.uint8))


@pytest.mark.parametrize("isa", cpu.available_isas())
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("model", MODELS)
def test_fused_as_step_by_step(model: str, scheme: str, isa: str) -> None:
    set_threads(2)
    same_both_ways(parts(model, scheme), isa=isa)


def static(linear: Linear, scale: float, offset: float) -> StaticLinear:
    assert isinstance(linear, DynamicLinear)
    bias = np.random.default_rng(0).integers(-999, 999, len(linear.scale), np.int32)
    step, zero = np.array([scale], np.float32), np.array([offset], np.float32)
    return StaticLinear(linear.weight, step, zero, bias, linear.scale * step)


def with_layer(made: Parts, number: int, **changes: object) -> Parts:
    decoder, schemes = made
    layers = list(decoder.layers)
    layers[number] = replace(layers[number], **changes)  # type: ignore[arg-type]
    return replace(decoder, layers=layers), schemes


def with_scales(made: Parts, scales: dict[str, float]) -> Parts:
    layer = made[0].layers[0]
    linears = {name: static(getattr(layer, name), scale, scale) for name, scale in scales.items()}
    return with_layer(made, 0, **linears)


def test_static_linears_with_scales_of_their_own() -> None:
    made = with_scales(parts("llama"), {"q_proj": 0.02, "k_proj": 0.02, "v_proj": 0.03, "gate_proj": 0.02})
    same_both_ways(made)
    same_both_ways(with_scales(made, {"o_proj": 0.05, "up_proj": 0.03, "down_proj": 0.1}))


def multiplied(linear: Linear, by: Floats | None) -> Linear:
    if isinstance(linear, StaticLinear):
        tables = linear.input_scale, linear.input_offset, linear.quant_bias, linear.deq_scale
        return StaticLinear(linear.weight, *tables, by)
    assert isinstance(linear, DynamicLinear)
    return DynamicLinear(linear.weight, linear.scale, linear.bias, linear.hadamard_block, by)


def with_multipliers(made: Parts, **multipliers: Floats | None) -> Parts:
    layer = made[0].layers[0]
    return with_layer(made, 0, **{name: multiplied(getattr(layer, name), by) for name, by in multipliers.items()})


@pytest.mark.parametrize("isa", cpu.available_isas())
@pytest.mark.parametrize("is_static", [False, True])
def test_inputs_with_multipliers(is_static: bool, isa: str) -> None:
    """Linears of the same inputs have equal ones in memory of their own, others, or only some have one."""
    made = parts("odd")
    if is_static:
        same = dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"), 0.02)
        made = with_scales(made, same)
    config = made[0].config
    random = np.random.default_rng(0)
    one, inner = (random.normal(size=n).astype(np.float32) for n in (config.hidden_size, config.intermediate_size))
    other = one.copy()
    other[-1] += 4
    alike = {name: one.copy() for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj")}
    different = {"q_proj": one, "k_proj": other, "v_proj": -one, "gate_proj": one, "up_proj": other}
    for multipliers in (
        {**alike, "down_proj": inner},
        different,
        {**different, "q_proj": None, "gate_proj": None},
        {"v_proj": one, "up_proj": one},
    ):
        same_both_ways(with_multipliers(made, **multipliers), isa=isa)


def test_norms_with_biases() -> None:
    norm = parts("odd")[0].layers[1].attention_norm
    assert isinstance(norm, RMSNorm)
    biased = RMSNorm(norm.weight, norm.eps, np.linspace(-1, 1, len(norm.weight), dtype=np.float32))
    same_both_ways(with_layer(parts("odd"), 1, attention_norm=biased, mlp_norm=biased))


def test_layers_with_caches_of_both_kinds_run_in_one_call() -> None:
    decoder, schemes = parts("odd-qwen2-window")
    made = (decoder, [None, schemes[1]])
    same_both_ways(made)
    assert len(PagedDecoder(decoder, Cache(made, 128, 600).pages, BACKEND)._layers._runs) == 1


@pytest.mark.parametrize("number", [0, 1])
def test_a_layer_that_is_not_int8_runs_by_itself(number: int) -> None:
    made = parts("odd-qwen3", "static")
    linear = made[0].layers[number].down_proj
    assert isinstance(linear, DynamicLinear)
    float_linear = FloatLinear(linear.weight * np.float32(1e-3))
    same_both_ways(with_layer(made, number, down_proj=float_linear))

    def with_float_pages(cache: Cache) -> None:
        c = made[0].config
        pages = FloatPages(c.num_heads, c.num_kv_heads, c.head_dim, cache.pages[0].num_pages, 128)
        poison(pages)
        cache.pages[number] = pages

    same_both_ways(made, with_float_pages)


def test_what_does_not_fit_is_refused() -> None:
    made = parts("llama")
    other = parts("odd")[0].layers[0]
    cache = Cache(made, 128, 300)
    with pytest.raises(ValueError, match="linears do not fit"):
        PagedDecoder(with_layer(made, 1, o_proj=other.o_proj)[0], cache.pages, BACKEND)
    with pytest.raises(ValueError, match="norm has another size"):
        PagedDecoder(with_layer(made, 1, attention_norm=other.attention_norm)[0], cache.pages, BACKEND)
    with pytest.raises(ValueError, match="do not fit together"):
        PagedDecoder(made[0], [cache.pages[0], Cache(made, 256, 300).pages[1]], BACKEND)
    paged, rope = PagedDecoder(made[0], cache.pages, BACKEND), Rope(made[0].config)
    for table, start, message in (
        (np.array([0, -1]), 127, "page is not in the cache"),
        (np.array([0, 99]), 127, "page is not in the cache"),
        (np.array([0]), 127, "too short"),
        (np.array([0]), -1, "start before 0"),
    ):
        with pytest.raises(ValueError, match=message):
            paged.run([Chunk(tokens(2), start, table, rope)])
    short, long = np.array([0]), np.array([1, 2])
    with pytest.raises(ValueError, match="page is not in the cache"):
        paged.run([Chunk(tokens(200), 0, short, rope), Chunk(tokens(200), 0, long, rope)])
    with pytest.raises(ValueError, match="too short"):
        step_by_step(made[0], cache, [Chunk(tokens(200), 0, short, rope), Chunk(tokens(200), 0, long, rope)])
    with pytest.raises(ValueError, match="no chunks"):
        paged.run([])
    with pytest.raises(ValueError, match="2 layers need"):
        PagedDecoder(made[0], cache.pages[:1], BACKEND)
    embedding = BACKEND.embedding(np.zeros((VOCABULARY, 48), np.float32))
    narrow = replace(made[0], config=replace(made[0].config, hidden_size=48), embedding=embedding)
    with pytest.raises(ValueError, match=r"x must be .* \[2, 96\]"):
        PagedDecoder(narrow, cache.pages, BACKEND).run([Chunk(tokens(2), 0, np.array([0]), rope)])


def test_other_objects_are_refused() -> None:
    layer = parts("llama")[0].layers[0]
    linears = [linear.kernel for linear in layer.linears if isinstance(linear, DynamicLinear)]
    norms = [layer.attention_norm.kernel, layer.mlp_norm.kernel, None, None, None, None]
    cache = Cache(parts("llama"), 128, 300).pages[0].cache
    _C.DecoderLayers().add(linears=linears, norms=norms, cache=cache, window=None)
    for wrong in (
        {"linears": [1] * 7},
        {"linears": linears[:6]},
        {"norms": [None] * 4},
        {"norms": [3] * 6},
        {"cache": 3},
    ):
        with pytest.raises(ValueError, match=r"linears|norms|cache"):
            _C.DecoderLayers().add(**{"linears": linears, "norms": norms, "cache": cache, "window": None, **wrong})


def test_prompts_run_together_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faquant.model.paged.TOGETHER", 10)
    groups = [(some.start, some.stop) for some in together([3, 4, 3, 1, 20, 5, 5, 1])]
    assert groups == [(0, 3), (3, 4), (4, 5), (5, 7), (7, 8)]
    assert list(together([])) == []


def test_prompts_lie_in_the_cache_one_after_another() -> None:
    rope = Rope(parts("llama")[0].config)
    batch = Batch.of_prompts([tokens(size) for size in (130, 5, 128)], [rope] * 3, position=256)
    assert batch.num_pages == 4
    expected = [*range(130), *range(256, 261), *range(384, 512)]
    assert batch.slots.tolist() == expected
    assert batch.positions.tolist() == [*range(130), *range(5), *range(128)]
    cos, _ = rope.tables(256 + batch.positions)
    assert np.array_equal(batch.tables[0], cos)
