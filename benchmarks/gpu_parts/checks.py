"""Compares bits: the GPU's kernels with the CPU's, batches with single rows, chunks with single tokens."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from faquant.checkpoint.model_config import ModelConfig, parse_config
from faquant.kernels import modules, reference
from faquant.kernels.arrays import to_numpy
from faquant.kernels.backend import Backend, Linear, make_backend
from faquant.kernels.cpu import CpuBackend
from faquant.kernels.cuda.modules import linear
from faquant.kernels.cuda.pages import Int8Pages
from faquant.kernels.cuda.self_test import self_test
from faquant.kernels.pages import Int8Pages as CpuPages
from faquant.kernels.pages import Spans
from faquant.kernels.scheme import P_LEVELS, TILE, AttentionScheme, hadamard_block
from faquant.kernels.tables import ASYMMETRIC_INPUT_STEPS, DynamicTable, FloatTable, StaticTable
from faquant.model.decoder import build_decoder
from faquant.model.paged import Chunk, PagedDecoder
from faquant.model.rope import Rope

from .results import Results
from .timing import device, reason

Check = tuple[str, Callable[[], bool]]


def same(ours: Any, theirs: Any) -> bool:
    """Whether two arrays of float32 or integers have the same shape and bits, and no NaN."""
    a, b = (torch.as_tensor(to_numpy(x)) for x in (ours, theirs))
    if a.dtype == torch.float32 and not a.isfinite().all():
        return False
    return a.dtype == b.dtype and torch.equal(*(x.contiguous().view(torch.uint8) for x in (a, b)))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Sequences:
    """The same sequences in a cache on the CPU and in one on the GPU, their pages in random order."""

    def __init__(self, scheme: AttentionScheme, lengths: list[int], page_size: int = TILE) -> None:
        self.scheme, self.lengths, self.page_size = scheme, lengths, page_size
        pages = [-(-length // page_size) for length in lengths]
        order = torch.randperm(sum(pages), generator=torch.Generator().manual_seed(7)).numpy()
        self.tables = np.split(order, np.cumsum(pages)[:-1])
        self.theirs = CpuPages(scheme, len(order), page_size)
        self.ours = Int8Pages(scheme, len(order), page_size, device())
        for number, (length, table) in enumerate(zip(lengths, self.tables, strict=True)):
            k, v = (random(length, scheme.num_kv_heads, scheme.head_dim, seed=2 * number + i) for i in range(2))
            positions = np.arange(length)
            slots = table[positions // page_size] * page_size + positions % page_size
            self.theirs.append(k, v, slots, positions)
            self.ours.append(k.to(device()), v.to(device()), slots, positions)

    def last(self, counts: list[int]) -> tuple[Tensor, Spans]:
        """Queries, and the spans of the last tokens of each sequence."""
        q = 2 * random(sum(counts), self.scheme.num_heads, self.scheme.head_dim, seed=99)
        parts = [(n, length - n, table) for n, length, table in zip(counts, self.lengths, self.tables, strict=True)]
        return q, Spans.of(parts)

    def attend(self, q: Tensor, spans: Spans, window: int | None = None) -> Tensor:
        """On the GPU."""
        return self.ours.attend(q.to(device()), spans, window)

    def agree(self, counts: list[int], window: int | None = None) -> bool:
        """Whether the GPU and the CPU store and attend alike."""
        q, spans = self.last(counts)
        stored = zip(self.tables, self.lengths, strict=True)
        return same(self.attend(q, spans, window), self.theirs.attend(q, spans, window)) and all(
            (ours is None and theirs is None) or same(ours, theirs)
            for table, length in stored
            for ours, theirs in zip(
                self.ours.read_bytes(table, length), self.theirs.read_bytes(table, length), strict=True
            )
        )


def _reference(scheme: AttentionScheme, length: int) -> bool:
    sequences = Sequences(scheme, [length])
    q, spans = sequences.last([1])
    stored = (
        None if x is None else torch.as_tensor(x) for x in sequences.theirs.read_bytes(sequences.tables[0], length)
    )
    return same(sequences.attend(q, spans), reference.attend(q, *stored, scheme, length - 1))


def _prefill_is_decode(scheme: AttentionScheme, start: int, tokens: int) -> bool:
    sequences = Sequences(scheme, [start + tokens])
    q, spans = sequences.last([tokens])
    singly = Spans.of([(1, start + i, sequences.tables[0]) for i in range(tokens)])
    return same(sequences.attend(q, spans), sequences.attend(q, singly))


def _batch_is_rows(scheme: AttentionScheme, lengths: list[int], repeats: int) -> bool:
    sequences = Sequences(scheme, lengths)
    q, spans = sequences.last([1] * len(lengths))
    rows = [
        sequences.attend(q[i : i + 1], Spans.of([(1, length - 1, table)]))
        for i, (length, table) in enumerate(zip(lengths, sequences.tables, strict=True))
    ]
    together = sequences.attend(q, spans)
    return same(together, torch.cat(rows)) and all(same(together, sequences.attend(q, spans)) for _ in range(repeats))


def _attention_checks(size: str) -> Iterator[Check]:
    tiny = size == "tiny"
    shapes = ((4, 2, 32),) if tiny else ((32, 8, 128), (64, 8, 128), (28, 4, 128), (9, 3, 64), (8, 8, 80))
    kinds = P_LEVELS
    if size == "quick":
        shapes, kinds = shapes[:1], {"int8x2": P_LEVELS["int8x2"]}
    lengths = [1, 130] if tiny else [1, 128, 129, 2049, 5000]
    for shape in shapes:
        scheme = AttentionScheme(*shape)
        name = "/".join(map(str, shape))
        yield f"decode {name}: CPU", lambda scheme=scheme: Sequences(scheme, lengths).agree([1] * len(lengths))
    scheme = AttentionScheme(*shapes[0])
    for kind, levels in kinds.items():
        some = replace(scheme, p_levels=levels, p_float16=levels == 127)
        yield f"decode, P {kind}: reference", lambda some=some: _reference(some, lengths[-1])
    many, repeats = ([1, 130], 1) if tiny else ([(37 * i * i) % 6000 + 1 for i in range(64)], 5)
    yield f"decode: {len(many)} rows, each alone, and again", lambda: _batch_is_rows(scheme, many, repeats)
    start, tokens = (5, 17) if tiny else (2000, 300)
    yield f"prefill of {tokens} tokens: decode", lambda: _prefill_is_decode(scheme, start, tokens)
    if not tiny:
        counts = [200, 1, 129]
        yield "prefill and decode together: CPU", lambda: Sequences(scheme, [2300, 700, 129]).agree(counts)
        yield "window of 300: CPU", lambda: Sequences(scheme, [2300, 700, 129]).agree(counts, 300)
        mapped = replace(
            scheme,
            k_center=random(3, 8, 128, seed=1),
            k_equalizer=random(3, 8, 128, seed=2).exp(),
            rotation_block=128,
            rotation_sign=random(128, seed=3).sign(),
            v_rotation_block=64,
        )
        yield "maps and rotations, pages of 256: CPU", lambda: Sequences(mapped, [3300, 700, 129], 256).agree(counts)


def _int8_table(inputs: int, outputs: int, block: int = 0) -> DynamicTable:
    generator = torch.Generator().manual_seed(inputs + outputs)
    weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8, generator=generator).numpy()
    scale = np.linspace(0.5, 1.5, outputs, dtype=np.float32) / np.float32(73 * inputs**0.5)
    return DynamicTable(weight, scale, hadamard_block=block, input_steps=ASYMMETRIC_INPUT_STEPS)


def _int8_linear(inputs: int, outputs: int, block: int, rows: tuple[int, ...]) -> bool:
    table = _int8_table(inputs, outputs, block)
    ours, theirs = linear(table, device()), CpuBackend().linear(table)
    x = random(max(rows), inputs, seed=5)
    expected = theirs(x)
    return all(same(ours(x[:n].to(device())), expected[:n]) for n in rows)


def _static_linear(inputs: int, outputs: int) -> bool:
    made = _int8_table(inputs, outputs)
    one, zero = np.full(1, 0.03, np.float32), np.full(1, 5, np.float32)
    bias = np.arange(outputs, dtype=np.int32)
    table = StaticTable(made.weight, one, zero, bias, made.scale)
    x = random(70, inputs, seed=6)
    theirs = modules.StaticLinear(made.weight, one, zero, bias, made.scale)
    return same(linear(table, device())(x.to(device())), theirs(x))


def _rows_alone(table: Any, inputs: int, rows: int) -> bool:
    ours = linear(table, device())
    x = random(rows, inputs, seed=8).to(device())
    together = ours(x)
    return same(together, torch.cat([ours(x[i : i + 1]) for i in range(rows)])) and same(together, ours(x))


def _float_linear(weight: Any, rows: tuple[int, ...]) -> bool:
    ours, theirs = linear(FloatTable(weight), device()), modules.FloatLinear(weight)
    x = random(max(rows), weight.shape[1], seed=9)
    expected = theirs(x)
    return all(same(ours(x[:n].to(device())), expected[:n]) for n in rows)


def _linear_checks(size: str) -> Iterator[Check]:
    if size == "tiny":
        yield "int8 linear 64 → 48: CPU", lambda: _int8_linear(64, 48, 32, (1, 5))
        yield "int8 linear: 3 rows, each alone", lambda: _rows_alone(_int8_table(64, 48), 64, 3)
        return
    shapes = (
        (4096, 6144, 0),
        (4096, 4096, 0),
        (14336, 4096, 512),
        (4096, 28672, 0),
        (576, 1536, 64),
        (8192, 1024, 0),
    )
    for inputs, outputs, block in shapes[:2] if size == "quick" else shapes:
        call = lambda inputs=inputs, outputs=outputs, block=block: _int8_linear(  # noqa: E731
            inputs, outputs, block, (1, 8, 33, 64, 200)
        )
        yield f"int8 linear {inputs} → {outputs}: CPU", call
    yield "int8 linear, static scale: CPU", lambda: _static_linear(4096, 1024)
    yield "int8 linear: 64 rows, each alone", lambda: _rows_alone(_int8_table(4096, 4096), 4096, 64)
    weight = random(1000, 4096, seed=4).bfloat16()
    stored = weight.view(torch.int16).numpy().view(np.uint16)
    for name, values in (("bfloat16", stored), ("float32", weight.float().numpy())):
        yield f"float linear, {name}: CPU", lambda values=values: _float_linear(values, (1, 5, 33))
    yield "float linear: 64 rows, each alone", lambda: _rows_alone(FloatTable(stored), 4096, 64)


def _converting() -> bool:
    """The kernel to compare with computes attention, within the precision of bfloat16."""
    from . import converting

    # The interpreter has no products of bfloat16.
    dtype = torch.float16 if device().type == "cpu" else torch.bfloat16
    heads, kv_heads, dim, length = 8, 2, 64, 700
    q = random(2, heads, dim, seed=1)
    cache_shape = 12, kv_heads, converting.PAGE, dim
    k, v = (random(*cache_shape, seed=seed).mul(40).round().clamp(-127, 127).to(torch.int8) for seed in (2, 3))
    scales = [random(*cache_shape[:3], seed=seed).abs().mul(0.02).half() for seed in (4, 5)]
    tables = torch.randperm(12, generator=torch.Generator().manual_seed(6)).int().view(2, 6)
    cache = converting.Cache(*(x.to(device()) for x in (k, v, *scales)))
    lengths = torch.tensor([length, 130], dtype=torch.int32)
    expected = []
    for row, n in enumerate(lengths.tolist()):
        whole_k, whole_v = (
            (x.float() * scale.float()[..., None])[tables[row]].transpose(0, 1).flatten(1, 2)[:, :n]
            for x, scale in zip((k, v), scales, strict=True)
        )
        rows = q[row].view(kv_heads, heads // kv_heads, dim)
        p = (rows @ whole_k.transpose(1, 2) / dim**0.5).softmax(-1)
        expected.append((p @ whole_v).reshape(heads, dim))
    goal = torch.stack(expected)
    outs = []
    for tiling in converting.TILINGS.values():
        kernel = converting.Converting(heads, kv_heads, dim, lengths.to(device()), length, 32, tiling, dtype)
        outs.append(kernel(q.to(device(), dtype), cache, tables.to(device())).float().cpu())
    return all(bool((out - goal).abs().max() < 0.03 * goal.abs().max()) for out in outs)


def _decoder(backend: Backend, config: ModelConfig, scheme: AttentionScheme) -> PagedDecoder:
    """A decoder with random weights, the same for every backend, and its cache."""
    generator = torch.Generator().manual_seed(0)

    def tensor(name: str) -> Any:
        if name.endswith("embed_tokens.weight"):
            shape: tuple[int, ...] = config.vocab_size, config.hidden_size
            return torch.randn(shape, generator=generator).numpy()
        return 1 + 0.3 * torch.randn(config.hidden_size, generator=generator).numpy()

    def make_linear(name: str) -> Linear:
        outputs, inputs = config.linear_shape(name)
        return backend.linear(_int8_table(inputs, outputs, hadamard_block(inputs, 512) if "down" in name else 0))

    decoder = build_decoder(config, backend, tensor, make_linear, lambda name: False)
    pages = [backend.int8_pages(scheme, 8, TILE) for _ in range(config.num_layers)]
    return PagedDecoder(decoder, pages, backend)


def _engine(hidden: int, intermediate: int, heads: int, kv_heads: int, prompt: int, steps: int) -> bool:
    """A layer in the GPU's engine and in the CPU's: two prompts, and a few tokens after them."""
    dim = hidden // heads
    config = parse_config(
        {
            "model_type": "llama",
            "vocab_size": 256,
            "num_hidden_layers": 1,
            "max_position_embeddings": 4096,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
        }
    )
    scheme = AttentionScheme(heads, kv_heads, dim, k_center=random(kv_heads, dim).numpy(), rotation_block=dim)
    decoders = [_decoder(make_backend(name), config, scheme) for name in ("cuda", "cpu")]
    rope, tables = Rope(config), (np.array([3, 0, 6]), np.array([5, 2, 1]))
    tokens = torch.randint(256, (2, prompt + steps), generator=torch.Generator().manual_seed(1)).numpy()
    for begin, end in ((0, prompt), *((prompt + i, prompt + i + 1) for i in range(steps))):
        chunks = [Chunk(row[begin:end], begin, table, rope) for row, table in zip(tokens, tables, strict=True)]
        if not same(*(decoder.logits(decoder.run(chunks)) for decoder in decoders)):
            return False
    return True


def _self_test() -> bool:
    parts = self_test(device())
    print(parts, flush=True)
    return all(parts.values())


def _run(checks: list[Check], results: Results) -> None:
    """Add rows to the table of checks. A check that fails, or raises, does not stop the others."""
    for number, (name, check) in enumerate(checks):
        if results.has("bits", check=name):
            continue
        if results.is_late:
            results.note(f"The time for checks of bits ended before `{name}` and {len(checks) - number - 1} others.")
            return
        begin = time.perf_counter()
        try:
            result = "same" if check() else "DIFFERENT"
        except Exception as error:
            result = reason(error)
        results.row("bits", check=name, result=result, seconds=time.perf_counter() - begin)


def attention(results: Results, size: str) -> None:
    """Check attention and the cache."""
    checks: list[Check] = [*_attention_checks(size), ("converting kernel, for comparison: bfloat16", _converting)]
    _run(checks, results)


def linears(results: Results, size: str) -> None:
    """Check linears."""
    _run([*_linear_checks(size)], results)


def engine(results: Results, size: str) -> None:
    """Check layers in the engine; and the product's own test, which takes minutes in the interpreter."""
    shape = (64, 96, 4, 2, 17, 1) if size == "tiny" else (4096, 14336, 32, 8, 150, 3)
    check = f"engine, a layer of hidden size {shape[0]}: CPU", lambda: _engine(*shape)
    _run([check] if size == "tiny" else [("self-test", _self_test), check], results)
