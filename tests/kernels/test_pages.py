"""Cache pages: neither the slot of a token nor other content of the pages changes a bit of an answer."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from faquant.kernels import quantizers, reference
from faquant.kernels.arrays import Stored
from faquant.kernels.backend import Pages
from faquant.kernels.cpu import CpuBackend
from faquant.kernels.pages import FloatPages, Int8Pages, Spans
from faquant.kernels.scheme import AttentionScheme
from faquant.kernels.torch_backend import float_attend
from oracles import attention as oracle
from oracles.pages import poison, stores

HEADS, KV_HEADS, DIM = 6, 2, 16
LENGTHS = [1, 63, 64, 65, 127, 128, 129, 1000]
KINDS = ["default", "static", "mindie"]
BACKEND = CpuBackend()


def random_qkv(tokens: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(tokens, HEADS, DIM, generator=generator)
    k = torch.randn(tokens, KV_HEADS, DIM, generator=generator) + torch.linspace(-4, 4, DIM)
    return q, k, torch.randn(tokens, KV_HEADS, DIM, generator=generator) + 1


def make_scheme(kind: str) -> AttentionScheme:
    """Tables that fit random_qkv without clipping."""
    center = torch.linspace(-4, 4, DIM).repeat(KV_HEADS, 1)
    if kind == "mindie":
        return AttentionScheme(
            HEADS,
            KV_HEADS,
            DIM,
            q_scale=torch.full((HEADS, 1), 0.05),
            k_scale=torch.full((KV_HEADS, 1), 0.1),
            v_scale=torch.full((KV_HEADS, 1), 0.06),
            p_levels=127,
            p_float16=True,
        )
    if kind == "default":
        return AttentionScheme(
            HEADS,
            KV_HEADS,
            DIM,
            k_center=center,
            k_equalizer=torch.linspace(0.5, 2, DIM).repeat(KV_HEADS, 1),
            rotation_block=DIM,
        )
    return AttentionScheme(
        HEADS,
        KV_HEADS,
        DIM,
        k_center=center,
        rotation_block=DIM,
        k_scale=torch.linspace(0.05, 0.06, DIM).repeat(KV_HEADS, 1),
        v_scale=torch.linspace(0.06, 0.05, DIM).repeat(KV_HEADS, 1),
        v_offset=torch.full((KV_HEADS, 1), -18.0),
        quantized_sum=True,
    )


def make_pages(kind: str, num_pages: int, page_size: int) -> Pages:
    if kind == "float":
        return FloatPages(HEADS, KV_HEADS, DIM, num_pages, page_size)
    return Int8Pages(make_scheme(kind), num_pages, page_size)


def slots_of(block_table: Tensor, page_size: int, start: int, end: int) -> Tensor:
    positions = torch.arange(start, end)
    return block_table[positions // page_size] * page_size + positions % page_size


def attend(pages: Pages, q: Tensor, block_table: Tensor, start: int, window: int | None = None) -> Tensor:
    return pages.attend(q, Spans.of([(len(q), start, block_table)]), window)


def same_bits(a: Any, b: Any) -> bool:
    return np.array_equal(*(np.ascontiguousarray(x).view(np.int32) for x in (a, b)))


def contiguous_answer(kind: str, q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    scheme = make_scheme(kind)
    k8, k_scale = quantizers.quantize_k(k, scheme)
    v8, v_scale = quantizers.quantize_v(v, scheme)
    return reference.attend(q, k8, v8, k_scale, v_scale, scheme, 0, window)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("page_size", [128, 256, 384])
@settings(max_examples=6, derandomize=True)
@given(
    seed=st.integers(0, 2**20),
    length=st.integers(1, 500),
    cuts=st.lists(st.integers(1, 499), max_size=3),
    window=st.sampled_from([None, 1, 40]),
)
def test_shuffled_pages_of_any_size_give_the_same_bits(
    kind: str, page_size: int, seed: int, length: int, cuts: list[int], window: int | None
) -> None:
    q, k, v = random_qkv(length, seed)
    expected = contiguous_answer(kind, q, k, v, window)
    pages = make_pages(kind, 500 // page_size + 3, page_size)
    poison(pages)
    block_table = torch.randperm(pages.num_pages, generator=torch.Generator().manual_seed(seed))
    start = 0
    for end in sorted({*(cut for cut in cuts if cut < length), length}):
        pages.append(k[start:end], v[start:end], slots_of(block_table, page_size, start, end), torch.arange(start, end))
        out = attend(pages, q[start:end], block_table, start, window)
        assert same_bits(out, expected[start:end])
        start = end


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", LENGTHS)
def test_any_length_through_pages_of_128(kind: str, length: int) -> None:
    q, k, v = random_qkv(length)
    pages = make_pages(kind, 9, 128)
    poison(pages)
    block_table = torch.arange(8, -1, -1)
    pages.append(k, v, slots_of(block_table, 128, 0, length), torch.arange(0, length))
    assert same_bits(attend(pages, q[-2:], block_table, max(0, length - 2)), contiguous_answer(kind, q, k, v)[-2:])


@pytest.mark.parametrize("cuts", [(), (1000, 1024, 1025), (1, 1500, 2048, 2049), (2090,)])
def test_a_map_of_each_block_of_positions_in_any_chunks(cuts: tuple[int, ...]) -> None:
    """Keys are stored, read back and scored by the map of their position, wherever a chunk starts."""
    length = 2100
    q, k, v = random_qkv(length)
    centers = torch.randn(2, KV_HEADS, DIM, generator=torch.Generator().manual_seed(7)) * 3
    equalizers = torch.stack([torch.linspace(0.5, 2, DIM), torch.linspace(3, 0.2, DIM)])[:, None].repeat(1, KV_HEADS, 1)
    scheme = AttentionScheme(HEADS, KV_HEADS, DIM, k_center=centers, k_equalizer=equalizers, rotation_block=DIM)
    pages = Int8Pages(scheme, 18, 128)
    poison(pages)
    block_table = torch.arange(17, -1, -1)
    start, parts = 0, []
    for end in (*cuts, length):
        pages.append(k[start:end], v[start:end], slots_of(block_table, 128, start, end), torch.arange(start, end))
        parts.append(attend(pages, q[start:end], block_table, start))
        start = end
    whole = Int8Pages(scheme, 18, 128)
    whole.append(k, v, torch.arange(length), torch.arange(length))
    out = torch.cat(parts)
    assert same_bits(out, attend(whole, q, torch.arange(18), 0))
    read = torch.from_numpy(pages.read(block_table, length)[0])
    assert (read - k).abs().max() < 0.1 * k.abs().max()
    torch.testing.assert_close(out, float_attend(q, k, v, 0), atol=0.1, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_pages_before_the_window_may_be_freed(kind: str) -> None:
    q, k, v = random_qkv(700)
    expected = contiguous_answer(kind, q, k, v, window=20)
    pages = make_pages(kind, 7, 128)
    block_table = torch.tensor([3, 1, 6, 0, 5, 2, 4])
    pages.append(k, v, slots_of(block_table, 128, 0, 700), torch.arange(0, 700))
    poison(pages, block_table[:5])
    assert same_bits(attend(pages, q[699:], block_table, 699, 20), expected[699:])


@pytest.mark.parametrize("kind", KINDS)
def test_neighbors_in_the_pool_and_later_tokens_change_nothing(kind: str) -> None:
    q, k, v = random_qkv(400)
    pages = make_pages(kind, 8, 128)
    mine, other = torch.tensor([5, 2, 7, 0]), torch.tensor([1, 6, 3, 4])
    pages.append(k, v, slots_of(mine, 128, 0, 400), torch.arange(0, 400))
    alone = attend(pages, q[:340], mine, 0)
    pages.append(k * 9, v * 9, slots_of(other, 128, 0, 400), torch.arange(0, 400))
    pages.append(k[340:] * 50, v[340:] * 50, slots_of(mine, 128, 340, 400), torch.arange(340, 400))
    assert same_bits(attend(pages, q[:340], mine, 0), alone)


@pytest.mark.parametrize("kind", KINDS)
def test_append_overwrites_a_slot_and_no_other(kind: str) -> None:
    _, k, v = random_qkv(512)
    pages, fresh = make_pages(kind, 4, 128), make_pages(kind, 4, 128)
    everything = torch.arange(4)
    pages.append(k, v, torch.arange(512), torch.arange(512))
    before = read_bytes(pages, everything)
    slots = torch.tensor([511, 0, 130])
    pages.append(k[:3] + 1, v[:3] + 1, slots, torch.arange(3))
    fresh.append(k[:3] + 1, v[:3] + 1, slots, torch.arange(3))
    kept = torch.ones(512, dtype=torch.bool)
    kept[slots] = False
    for stored, old, new in zip(read_bytes(pages, everything), before, read_bytes(fresh, everything), strict=True):
        assert np.array_equal(stored[kept], old[kept])
        assert np.array_equal(stored[slots], new[slots])


def read_bytes(pages: Pages, block_table: Tensor) -> list[Stored]:
    """The complete content of a sequence's int8 pages."""
    if not isinstance(pages, Int8Pages):
        raise TypeError("only int8 pages hold bytes")
    return [x for x in pages.read_bytes(block_table, len(block_table) * pages.page_size) if x is not None]


@pytest.mark.parametrize("kind", [*KINDS, "float"])
def test_copy_page_is_exact_and_touches_one_page(kind: str) -> None:
    _, k, v = random_qkv(3 * 128)
    pages = make_pages(kind, 4, 128)
    poison(pages)
    pages.append(k, v, torch.arange(3 * 128), torch.arange(3 * 128))
    before = [np.asarray(store).copy() for store in stores(pages)]
    pages.copy_page(1, 3)
    for store, old in zip(stores(pages), before, strict=True):
        as_bytes, old_bytes = np.asarray(store).view(np.uint8), old.view(np.uint8)
        assert np.array_equal(as_bytes[:3], old_bytes[:3])
        assert np.array_equal(as_bytes[3], old_bytes[1])
    a, b = (pages.read(torch.tensor([0, page]), 256) for page in (1, 3))
    assert same_bits(a[0], b[0])
    assert same_bits(a[1], b[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 128, 257, 500])
def test_read_is_within_half_a_step_of_each_rotated_channel(kind: str, length: int) -> None:
    _, k, v = random_qkv(500)
    scheme = make_scheme(kind)
    pages = make_pages(kind, 6, 128)
    poison(pages)
    block_table = torch.tensor([4, 0, 5, 2])
    pages.append(k, v, slots_of(block_table, 128, 0, 500), torch.arange(0, 500))
    k_read, v_read = map(torch.from_numpy, pages.read(block_table, length))
    assert k_read.shape == v_read.shape == (length, KV_HEADS, DIM)
    for read, x, scale in (
        (quantizers.map_k(k_read, scheme), quantizers.map_k(k[:length], scheme), scheme.k_scale),
        (v_read, v[:length], scheme.v_scale),
    ):
        step = x.abs().amax(-1, keepdim=True) / 127 * (1 + 2**-10) if scale is None else scale
        assert ((read - x).abs() <= step * 0.5 + 1e-5).all()


def test_read_is_what_attend_sees() -> None:
    """Float attention over the result of read() equals the int8 attention, except for the rounding of q and P."""
    q, k, v = random_qkv(200)
    for kind in ("default", "static"):
        pages = make_pages(kind, 2, 128)
        pages.append(k, v, torch.arange(200), torch.arange(200))
        k_read, v_read = map(torch.from_numpy, pages.read(torch.arange(2), 200))
        out, expected = attend(pages, q, torch.arange(2), 0), float_attend(q, k_read, v_read, 0)
        assert (out - expected).norm() / expected.norm() < 0.005


@pytest.mark.parametrize("window", [None, 1, 33])
def test_float_pages_are_exact_attention(window: int | None) -> None:
    q, k, v = random_qkv(100)
    pages = make_pages("float", 8, 16)
    block_table = torch.tensor([6, 3, 0, 7, 1, 2, 5])
    pages.append(k, v, slots_of(block_table, 16, 0, 100), torch.arange(0, 100))
    out = attend(pages, q[60:], block_table, 60, window)
    exact = oracle.exact_attention(*(x.double().numpy() for x in (q[60:], k, v)), 60, window)
    torch.testing.assert_close(out.double(), torch.from_numpy(exact), rtol=0, atol=5e-6)


@pytest.mark.parametrize("window", [None, 20])
def test_float_pages_see_no_poison(window: int | None) -> None:
    q, k, v = random_qkv(50)
    table = torch.arange(4)
    pages = make_pages("float", 4, 16)
    pages.append(k, v, torch.arange(50), torch.arange(50))
    expected = attend(pages, q[45:], table, 45, window)
    poison(pages)
    kept = 0 if window is None else 45 - window + 1
    pages.append(k[kept:], v[kept:], torch.arange(kept, 50), torch.arange(kept, 50))
    assert same_bits(attend(pages, q[45:], table, 45, window), expected)


@pytest.mark.parametrize("kind", [*KINDS, "float", "bfloat16"])
def test_arrays_of_numpy_give_the_bits_of_tensors_and_come_back_as_arrays(kind: str) -> None:
    q, k, v = random_qkv(300)
    block_table, positions, outs = torch.tensor([2, 0, 1]), torch.arange(300), []
    for convert in (torch.asarray, np.asarray):
        pages: Pages
        if kind == "bfloat16":
            pages = BACKEND.float_pages(HEADS, KV_HEADS, DIM, 3, 128, "bfloat16")
        else:
            pages = make_pages(kind, 3, 128)
        poison(pages)
        pages.append(*map(convert, (k, v, slots_of(block_table, 128, 0, 300), positions)))
        out = attend(pages, convert(q[200:]), convert(block_table), 200, 90)
        assert type(out) is type(convert(q))
        outs.append([out, *pages.read(convert(block_table), 300)])
        assert all(isinstance(x, np.ndarray) for x in outs[-1][1:])
    assert all(same_bits(a, b) for a, b in zip(*outs, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strided", [False, True])
def test_a_scheme_with_tables_of_numpy_is_that_of_tensors(kind: str, strided: bool) -> None:
    """Arrays from files are read-only and can be views."""
    scheme = make_scheme(kind)

    def stored(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        array = np.repeat(x.numpy(), 2, axis=0)[::2] if strided else x.numpy().copy()
        array.flags.writeable = False
        return array

    other = AttentionScheme(**{name: stored(x) for name, x in vars(scheme).items()})
    q, k, v = random_qkv(200)
    places, outs = torch.arange(200), []
    for some in (scheme, other):
        pages = Int8Pages(some, 2, 128)
        pages.append(k, v, places, places)
        outs.append([attend(pages, q, torch.arange(2), 0), *pages.read(torch.arange(2), 200)])
    assert all(same_bits(a, b) for a, b in zip(*outs, strict=True))
    assert same_bits(outs[0][0], contiguous_answer(kind, q, k, v))
    k8, k_scale = quantizers.quantize_k(k, other)
    v8, v_scale = quantizers.quantize_v(v, other)
    assert same_bits(reference.attend(q, k8, v8, k_scale, v_scale, other, 0), outs[0][0])


def test_read_only_queries_keys_and_values_are_taken() -> None:
    q, k, v = (x.numpy() for x in random_qkv(20))
    pages = make_pages("default", 1, 128)
    expected = attend_all(pages, q, k, v)
    for x in (q, k, v):
        x.flags.writeable = False
    assert same_bits(attend_all(pages, q, k, v), expected)


def attend_all(pages: Pages, q: Any, k: Any, v: Any) -> Any:
    places = np.arange(len(k))
    pages.append(k, v, places, places)
    return attend(pages, q, np.arange(pages.num_pages), 0)


@pytest.mark.parametrize(("kind", "expected"), [("default", 2 * 16 + 4), ("static", 2 * 16), ("mindie", 2 * 16)])
def test_bytes_per_token_count_what_is_stored(kind: str, expected: int) -> None:
    pages = make_pages(kind, 3, 128)
    assert pages.bytes_per_token == KV_HEADS * expected
    assert pages.bytes_per_token * 3 * 128 == sum(store.nbytes for store in stores(pages))


def test_float_bytes_per_token_count_what_is_stored() -> None:
    pages = make_pages("float", 3, 16)
    assert pages.bytes_per_token * 3 * 16 == sum(store.nbytes for store in stores(pages))


def test_values_beyond_a_calibrated_range_are_counted() -> None:
    scheme = AttentionScheme(
        HEADS,
        KV_HEADS,
        DIM,
        q_scale=torch.full((HEADS, 1), 0.01),
        k_scale=torch.full((KV_HEADS, DIM), 0.01),
        v_scale=torch.full((KV_HEADS, 1), 0.01),
        v_offset=torch.full((KV_HEADS, 1), 20.0),
    )
    pages = Int8Pages(scheme, 1, 128)
    numbers = torch.arange(4)
    k = torch.zeros(4, KV_HEADS, DIM)
    k[0, 0, :3] = torch.tensor([1.27, 1.28, -1.29])  # 128 and -129 steps are clamped, 127 are not
    v = torch.full_like(k, 1.07)
    v[2] = 1.09
    pages.append(k, v, numbers, numbers)
    q = torch.zeros(4, HEADS, DIM)
    q[3] = 2.0 / 0.01  # the map multiplies by K's scale of each channel
    attend(pages, q, torch.tensor([0]), 0)
    found = pages.saturation
    assert found.written == {"k": k.numel(), "v": v.numel(), "q": q.numel()}
    assert found.saturated == {"k": 2, "v": KV_HEADS * DIM, "q": HEADS * DIM}
