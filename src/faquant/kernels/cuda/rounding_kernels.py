"""The kernels of rounding.py."""

import triton
import triton.language as tl

from .. import tables
from .arithmetic import hadamard, integer_of, magnitude_bits, rounded, scale_of
from .elementwise import rms_factor, silu

ASYMMETRIC_INPUT_STEPS = tl.constexpr(tables.ASYMMETRIC_INPUT_STEPS)


@triton.jit
def round_rows(
    x,
    values,
    scales,
    zeros,
    norm_weight,
    norm_bias,
    eps,
    multiplier,
    input_scale,
    input_offset,
    SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK: tl.constexpr,
    FACTOR: tl.constexpr,
    STEPS: tl.constexpr,
):
    """One row of SIZE inputs in chunks of CHUNK, all in registers. Grid (tokens,)."""
    CHUNKS: tl.constexpr = (SIZE + CHUNK - 1) // CHUNK
    MASKED: tl.constexpr = SIZE % CHUNK != 0
    columns = tl.arange(0, CHUNK)
    row = tl.program_id(0).to(tl.int64)
    x += row * (2 * SIZE if GATED else SIZE)
    values += row * SIZE * _rows_of_bytes(STEPS)
    # All loads of a row are under way before the first number is needed, and RMSNorm's sum finds the row in L1.
    first, ups, inputs = tl.tuple([]), tl.tuple([]), tl.tuple([])
    for i in tl.static_range(CHUNKS):
        first += (_load(x, i * CHUNK + columns, SIZE, MASKED and i == CHUNKS - 1),)
        if GATED:
            ups += (_load(x + SIZE, i * CHUNK + columns, SIZE, MASKED and i == CHUNKS - 1),)
    rms = 1.0
    if norm_weight is not None:
        rms = rms_factor(x + tl.arange(0, 1), eps, 1, SIZE)
    for i in tl.static_range(CHUNKS):
        y = first[i]
        if GATED:
            y = silu(y) * ups[i]
        at = i * CHUNK + columns
        inputs += (
            _transformed(
                y, at, rms, norm_weight, norm_bias, multiplier, SIZE, MASKED and i == CHUNKS - 1, CHUNK, BLOCK, FACTOR
            ),
        )
    if input_scale is not None:
        scale = tl.load(input_scale)
        offset = tl.load(input_offset)
    else:
        highs, lows = _extremes(inputs[0], STEPS)
        for i in tl.static_range(1, CHUNKS):
            high, low = _extremes(inputs[i], STEPS)
            highs, lows = tl.maximum(highs, high), tl.maximum(lows, low)
        scale = _scale_of_all(highs, lows, STEPS)
        offset = _offset_of_all(lows, scale, STEPS)
        tl.store(scales + row, scale)
        if offset is not None:
            tl.store(zeros + row, offset.to(tl.int32))
    for i in tl.static_range(CHUNKS):
        _round(values, i * CHUNK + columns, inputs[i], scale, offset, SIZE, MASKED and i == CHUNKS - 1, STEPS)


@triton.jit
def round_long_rows(
    x,
    values,
    scales,
    zeros,
    norm_weight,
    norm_bias,
    eps,
    multiplier,
    input_scale,
    input_offset,
    SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK: tl.constexpr,
    FACTOR: tl.constexpr,
    STEPS: tl.constexpr,
):
    """As round_rows, for a row that does not fit into registers: its inputs are computed twice, first for their
    maximum.
    """
    CHUNKS: tl.constexpr = (SIZE + CHUNK - 1) // CHUNK
    MASKED: tl.constexpr = SIZE % CHUNK != 0
    columns = tl.arange(0, CHUNK)
    row = tl.program_id(0).to(tl.int64)
    x += row * (2 * SIZE if GATED else SIZE)
    values += row * SIZE * _rows_of_bytes(STEPS)
    rms = 1.0
    if norm_weight is not None:
        rms = rms_factor(x + tl.arange(0, 1), eps, 1, SIZE)
    if input_scale is not None:
        scale = tl.load(input_scale)
        offset = tl.load(input_offset)
    else:
        highs = tl.zeros((CHUNK,), tl.int32)
        lows = tl.zeros((CHUNK,), tl.int32)
        for i in range(CHUNKS):
            at = i * CHUNK + columns
            y = _first(x, at, SIZE, MASKED, GATED)
            y = _transformed(y, at, rms, norm_weight, norm_bias, multiplier, SIZE, MASKED, CHUNK, BLOCK, FACTOR)
            high, low = _extremes(y, STEPS)
            highs = tl.maximum(highs, high)
            lows = tl.maximum(lows, low)
        scale = _scale_of_all(highs, lows, STEPS)
        offset = _offset_of_all(lows, scale, STEPS)
        tl.store(scales + row, scale)
        if offset is not None:
            tl.store(zeros + row, offset.to(tl.int32))
    for i in range(CHUNKS):
        at = i * CHUNK + columns
        y = _first(x, at, SIZE, MASKED, GATED)
        y = _transformed(y, at, rms, norm_weight, norm_bias, multiplier, SIZE, MASKED, CHUNK, BLOCK, FACTOR)
        _round(values, at, y, scale, offset, SIZE, MASKED, STEPS)


@triton.jit
def prepare_chunks(
    x,
    values,
    prepared,
    peaks,
    multiplier,
    input_scale,
    input_offset,
    SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK: tl.constexpr,
    FACTOR: tl.constexpr,
    STEPS: tl.constexpr,
):
    """A chunk of a row without RMSNorm: rounded if the scale is static, otherwise stored in `prepared` [tokens, SIZE],
    and its _extremes in peaks [tokens, chunks, 2]. Grid (tokens, chunks).
    """
    CHUNKS: tl.constexpr = (SIZE + CHUNK - 1) // CHUNK
    MASKED: tl.constexpr = SIZE % CHUNK != 0
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    y = _first(x + row * (2 * SIZE if GATED else SIZE), at, SIZE, MASKED, GATED)
    y = _transformed(y, at, 1.0, None, None, multiplier, SIZE, MASKED, CHUNK, BLOCK, FACTOR)
    if input_scale is not None:
        _round(values + row * SIZE, at, y, tl.load(input_scale), tl.load(input_offset), SIZE, MASKED, 127.0)
    else:
        tl.store(prepared + row * SIZE + at, y, mask=at < SIZE if MASKED else None)
        high, low = _extremes(y, STEPS)
        at = (row * CHUNKS + chunk) * 2
        tl.store(peaks + at, tl.max(high, axis=0))
        tl.store(peaks + at + 1, tl.max(low, axis=0))


@triton.jit
def round_chunks(
    prepared,
    peaks,
    values,
    scales,
    zeros,
    SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    WIDTH: tl.constexpr,
    STEPS: tl.constexpr,
):
    """A chunk of a row from prepare_chunks, with the scale of the row. Grid (tokens, chunks).

    WIDTH: a power of two of at least as many chunks.
    """
    CHUNKS: tl.constexpr = (SIZE + CHUNK - 1) // CHUNK
    MASKED: tl.constexpr = SIZE % CHUNK != 0
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    y = _load(prepared + row * SIZE, at, SIZE, MASKED)
    numbers = tl.arange(0, WIDTH)
    peaks += 2 * (row * CHUNKS + numbers)
    highs = tl.load(peaks, mask=numbers < CHUNKS, other=0)
    lows = tl.load(peaks + 1, mask=numbers < CHUNKS, other=0)
    scale = _scale_of_all(highs, lows, STEPS)
    offset = _offset_of_all(lows, scale, STEPS)
    if chunk == 0:
        tl.store(scales + row, scale)
        if offset is not None:
            tl.store(zeros + row, offset.to(tl.int32))
    _round(values + row * SIZE * _rows_of_bytes(STEPS), at, y, scale, offset, SIZE, MASKED, STEPS)


@triton.jit
def _first(x, at, SIZE: tl.constexpr, MASKED: tl.constexpr, GATED: tl.constexpr):
    """x or silu(gate) · up at these places of a row; 0 beyond its end."""
    y = _load(x, at, SIZE, MASKED)
    if GATED:
        y = silu(y) * _load(x + SIZE, at, SIZE, MASKED)
    return y


@triton.jit
def _transformed(
    y,
    at,
    rms,
    norm_weight,
    norm_bias,
    multiplier,
    SIZE: tl.constexpr,
    MASKED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    FACTOR: tl.constexpr,
):
    """The inputs at these places of a row, before their rounding."""
    if norm_weight is not None:
        y = _load(norm_weight, at, SIZE, MASKED) * (y * rms)
        if norm_bias is not None:
            y += _load(norm_bias, at, SIZE, MASKED)
    if multiplier is not None:
        y *= _load(multiplier, at, SIZE, MASKED)
    if BLOCK > 1:
        y = tl.reshape(hadamard(tl.reshape(y, (1, CHUNK)), 1, CHUNK, BLOCK, FACTOR), (CHUNK,))
    return y


@triton.jit
def _extremes(y, STEPS: tl.constexpr):
    """The magnitudes' bits of positive and of negative numbers, 0 for the others; without zero points, of all numbers
    twice. As bits, because a maximum of floats loses NaN.
    """
    bits = magnitude_bits(y)
    if STEPS != ASYMMETRIC_INPUT_STEPS:
        return bits, bits
    is_negative = y.to(tl.int32, bitcast=True) < 0
    return tl.where(is_negative, 0, bits), tl.where(is_negative, bits, 0)


@triton.jit
def _greatest(bits):
    return tl.max(bits, axis=0).to(tl.float32, bitcast=True)


@triton.jit
def _scale_of_all(highs, lows, STEPS: tl.constexpr):
    """The scale of a row with these _extremes."""
    peak = _greatest(highs)
    if STEPS == ASYMMETRIC_INPUT_STEPS:
        peak += _greatest(lows)
    return scale_of(peak, STEPS)


@triton.jit
def _offset_of_all(lows, scale, STEPS: tl.constexpr):
    """The int8 that stands for 0, as float32; None without zero points."""
    offset = None
    if STEPS == ASYMMETRIC_INPUT_STEPS:
        offset = rounded(tl.minimum(tl.div_rn(_greatest(lows), scale), 255.0)) - 128.0
    return offset


@triton.constexpr_function
def _rows_of_bytes(steps):
    """As RoundedInputs has them for a row of inputs with this many steps."""
    return 2 if steps == tables.WIDE_INPUT_STEPS else 1


@triton.jit
def _round(values, at, y, scale, offset, SIZE: tl.constexpr, MASKED: tl.constexpr, STEPS: tl.constexpr):
    """Store y in steps of its scale at these places of a row; an offset is added to rounded steps, as in MindIE.
    With 16 bits, the low bytes follow the row of high bytes.
    """
    steps = tl.div_rn(y, scale)
    if offset is not None:
        # Beyond 2^22 `rounded` is inexact, but such steps are clamped anyway.
        steps = rounded(steps) + offset
    mask = at < SIZE if MASKED else None
    if _rows_of_bytes(STEPS) == 1:
        integers = integer_of(tl.minimum(tl.maximum(steps, -128.0), 127.0))
        tl.store(values + at, integers.to(tl.int8), mask=mask)
    else:
        integers = integer_of(tl.minimum(tl.maximum(steps, -STEPS), STEPS)) + 128
        tl.store(values + at, (integers >> 8).to(tl.int8), mask=mask)
        tl.store(values + SIZE + at, ((integers & 255) - 128).to(tl.int8), mask=mask)


@triton.jit
def _load(pointer, at, SIZE: tl.constexpr, MASKED: tl.constexpr):
    return tl.load(pointer + at, mask=at < SIZE if MASKED else None, other=0.0 if MASKED else None)
