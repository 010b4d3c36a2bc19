import torch

from .kernels.cpu import ByteVector

MAX_DOT_LENGTH: int
TILE: int

def cpu_features() -> dict[str, bool]: ...
def cpu_brand() -> str: ...
def available_isas() -> list[str]: ...
def selected_isa() -> str: ...
def selection_warning() -> str: ...
def self_test() -> dict[str, bool]: ...
def self_test_notices_saturation() -> bool: ...
def dot_u8s8(a: ByteVector, b: ByteVector, isa: str | None = None) -> int: ...
def dot_s8s8(a: ByteVector, b: ByteVector, isa: str | None = None) -> int: ...
def attend(
    *,
    out: torch.Tensor,
    q: torch.Tensor,
    q_scale: torch.Tensor,
    q_bias: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
    v_step: torch.Tensor | None,
    v_offset: torch.Tensor | None,
    start: int,
    window: int | None,
    split: int,
    map_block: int,
    p_levels: int,
    quantized_sum: bool,
    threads: int,
    isa: str | None,
) -> None: ...
