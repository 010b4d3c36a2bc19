"""AttentionScheme: how one layer's q, k and v become int8, and P an integer."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class AttentionScheme:
    """The tables of one layer (FORMAT: docs/format.md), all float32 on the CPU.

    A scale of None is dynamic: for k and v one float16 per token and head, kept in the cache page; for q one
    float32 per token and head. A static scale has the shape [heads, 1] (per head) or [heads, D] (per channel).
    Zero points are in steps and are added before rounding: x8 = clamp(rint(x / scale + offset), -128, 127).

    Attributes:
        k_center, k_equalizer: [Hkv, D] or None (0 and 1), in K's units after RoPE.
        rotation_block: size of the Hadamard blocks on q and k after RoPE; 0: no rotation.
        rotation_sign: [D] of ±1, applied before the Hadamard transform; None: all +1.
        v_rotation_block: size of the Hadamard blocks on V and back on the output, where v_proj and o_proj do not
            hold them already; 0: no rotation at run time.
        p_levels: the integer that the largest P of a tile becomes: 255 (8 bits), 32767 (16 bits), or 127, which is
            the ecosystem's: P is rounded to float16 first, as its kernel does.
        quantized_sum: whether softmax divides by the sum of the quantized P; needs a static V scale.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    k_center: Tensor | None = None
    k_equalizer: Tensor | None = None
    rotation_block: int = 0
    rotation_sign: Tensor | None = None
    v_rotation_block: int = 0
    q_scale: Tensor | None = None
    k_scale: Tensor | None = None
    k_offset: Tensor | None = None
    v_scale: Tensor | None = None
    v_offset: Tensor | None = None
    p_levels: int = 32767
    quantized_sum: bool = False

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"{self.num_heads} query heads are no multiple of {self.num_kv_heads} key/value heads")
        block = self.rotation_block
        if block and (block & (block - 1) or self.head_dim % block):
            raise ValueError(f"a rotation block is a power of two that divides {self.head_dim}, not {block}")
        if self.p_levels not in (127, 255, 32767):
            raise ValueError(f"P has 127, 255 or 32767 levels, not {self.p_levels}")
        if self.quantized_sum and self.v_scale is None:
            raise ValueError("V's scale per token is part of the quantized P, so their sum is not softmax's")
        for name in ("k", "v"):
            if getattr(self, f"{name}_offset") is not None and getattr(self, f"{name}_scale") is None:
                raise ValueError(f"{name}_offset counts steps of {name}_scale, which is dynamic")
        for name in ("q_scale", "k_center", "k_equalizer", "k_scale", "k_offset", "v_scale", "v_offset"):
            self._check_shape(name)

    def _check_shape(self, name: str) -> None:
        table: Tensor | None = getattr(self, name)
        heads = self.num_heads if name == "q_scale" else self.num_kv_heads
        if table is not None and (
            table.dim() != 2 or table.shape[0] != heads or table.shape[1] not in (1, self.head_dim)
        ):
            raise ValueError(f"{name} must be [{heads}, 1] or [{heads}, {self.head_dim}], not {list(table.shape)}")

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token takes in this layer's cache."""
        scales = (self.k_scale is None) + (self.v_scale is None)
        return self.num_kv_heads * (2 * self.head_dim + 2 * scales)

    @property
    def summary(self) -> str:
        """In a few words, for a person."""
        kinds = {None: "per token", 1: "per head"}
        scale = kinds.get(None if self.k_scale is None else self.k_scale.shape[-1], "per channel")
        maps = [
            name
            for name, used in (
                ("centred", self.k_center is not None),
                ("equalised", self.k_equalizer is not None),
                ("rotated", self.rotation_block > 0),
            )
            if used
        ]
        return f"int8, scale {scale}" + (f", K {', '.join(maps)}" if maps else "") + f", P up to {self.p_levels}"
