from typing import overload

from .arrays import Array
from .isa import ByteVector

MAX_DOT_LENGTH: int
TILE: int
MAX_HEAD_DIM: int
PADDING: int
PANEL: int

def cpu_features() -> dict[str, bool]: ...
def cpu_brand() -> str: ...
def available_isas() -> list[str]: ...
def selected_isa() -> str: ...
def selection_warning() -> str: ...
def self_test() -> dict[str, bool]: ...
def dot_u8s8(a: ByteVector, b: ByteVector, isa: str | None = None) -> int: ...
def dot_s8s8(a: ByteVector, b: ByteVector, isa: str | None = None) -> int: ...
def rope(x: Array, cos: Array, sin: Array, threads: int, isa: str | None) -> None: ...
def rope_tables(frequencies: Array, positions: Array, scaling: float, cos: Array, sin: Array) -> None: ...
def compensate(targets: Array, steps: Array, coefficients: Array, rounded: Array, errors: Array) -> None: ...
def silu_times(gate: Array, up: Array, out: Array, threads: int, isa: str | None) -> None: ...
def gelu_times(gate: Array, up: Array, out: Array, threads: int, isa: str | None) -> None: ...
def pack_weight(weight: Array, packed: Array, totals: Array, threads: int) -> None: ...
def pack_float_weight(weight: Array, packed: Array, threads: int) -> None: ...
def widen_bfloat16(source: Array, target: Array, threads: int) -> None: ...
def widen_float16(source: Array, target: Array, threads: int) -> None: ...
def draw(
    scores: int,
    is_wide: bool,
    vocab: int,
    rows: int,
    draws: list[tuple[int, int, tuple[float, int, float, float, float], bool]],
    threads: int,
    isa: str | None,
) -> list[int]: ...
def distribution(
    scores: int, is_wide: bool, vocab: int, sampling: tuple[float, int, float, float, float], isa: str | None
) -> list[tuple[int, float]]: ...
def likeliest(
    scores: int, is_wide: bool, vocab: int, counts: list[int], threads: int, isa: str | None
) -> list[tuple[float, list[tuple[int, float]]]]: ...
def set_threads(threads: int) -> None: ...
def read_all(words: Array, *, threads: int) -> int: ...

class LayerCache:
    @overload
    def __init__(self, *, heads: int, k: Array, v: Array, dim: int) -> None: ...
    @overload
    def __init__(
        self,
        *,
        heads: int,
        k: Array,
        v: Array,
        k_scales: Array | None,
        v_scales: Array | None,
        dim: int,
        map_block: int,
        k_center: Array | None,
        k_equalizer: Array | None,
        rotation_block: int,
        rotation_sign: Array | None,
        v_rotation_block: int,
        q_scale: Array | None,
        q_by_channel: bool,
        k_scale: Array | None,
        k_by_channel: bool,
        k_offset: Array | None,
        v_scale: Array | None,
        v_offset: Array | None,
        p_levels: int,
        p_float16: bool,
        quantized_sum: bool,
    ) -> None: ...
    def append(
        self, k: Array, v: Array, slots: Array, positions: Array, threads: int, isa: str | None
    ) -> tuple[int, int]: ...
    def attend(
        self,
        out: Array,
        q: Array,
        spans: Array,
        block_tables: Array,
        window: int | None,
        split: int,
        threads: int,
        isa: str | None,
    ) -> int: ...

class FloatCache:
    def __init__(self, *, heads: int, k: Array, v: Array) -> None: ...
    def append(self, k: Array, v: Array, slots: Array) -> None: ...
    def attend(
        self,
        out: Array,
        q: Array,
        spans: Array,
        block_tables: Array,
        window: int | None,
        threads: int,
        isa: str | None = None,
    ) -> None: ...

class Int8Linear:
    def __init__(
        self,
        *,
        inputs: int,
        outputs: int,
        weight: Array,
        totals: Array,
        scale: Array,
        bias: Array | None,
        hadamard_block: int,
        input_scale: Array | None,
        input_offset: Array | None,
        quant_bias: Array | None,
        input_multiplier: Array | None,
        input_steps: float,
    ) -> None: ...
    def apply(self, x: Array, out: Array, threads: int, isa: str | None) -> None: ...

class FloatLinear:
    def __init__(self, *, inputs: int, outputs: int, weight: Array, bias: Array | None) -> None: ...
    @property
    def inputs(self) -> int: ...
    @property
    def outputs(self) -> int: ...
    def apply(self, x: Array, out: Array, threads: int, isa: str | None = None) -> None: ...

class RmsNorm:
    def __init__(self, *, weight: Array, bias: Array | None, eps: float) -> None: ...
    @property
    def size(self) -> int: ...
    def apply(self, x: Array, out: Array, threads: int, isa: str | None) -> None: ...

class DecoderLayers:
    def __init__(self) -> None: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    def add(
        self,
        *,
        linears: list[Int8Linear],
        norms: list[RmsNorm | None],
        cache: LayerCache,
        window: int | None,
        rope: int = 0,
        gelu: bool = False,
    ) -> None: ...
    def run(
        self,
        x: Array,
        cos: Array,
        sin: Array,
        spans: Array,
        block_tables: Array,
        split: int,
        threads: int,
        isa: str | None,
    ) -> list[list[int]]: ...
