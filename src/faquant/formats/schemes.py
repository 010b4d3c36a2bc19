"""The attention scheme of a layer, read from its fa_* tensors."""

import torch
from torch import Tensor

from ..checkpoint.model_config import ModelConfig
from ..checkpoint.tensors import TensorDict, TensorFiles
from ..errors import CheckpointError, UnsupportedError
from ..kernels.scheme import MAP_BLOCK, AttentionScheme
from .faquant.metadata import Metadata

P_LEVELS = {"int16": 32767, "uint8": 255, "int8": 127}


class Checked:
    """Tensors of a directory, with their shapes and values checked as they are read."""

    def __init__(self, files: TensorFiles | TensorDict) -> None:
        self.files = files

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def names(self) -> list[str]:
        return self.files.names()

    def expect(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise CheckpointError unless the tensor is there with that shape; reads no data."""
        if name not in self.files:
            raise CheckpointError(f"The checkpoint has no tensor {name}, which its config.json implies.")
        found = self.files.shape(name)
        if found != shape:
            raise CheckpointError(f"{name} has shape {list(found)}, but config.json implies {list(shape)}.")

    def get(self, name: str, shape: tuple[int, ...] | None = None, dtype: torch.dtype | None = None) -> Tensor:
        if shape is not None:
            self.expect(name, shape)
        if dtype is not None and self.files.dtype(name) != dtype:
            raise CheckpointError(f"{name} has dtype {self.files.dtype(name)}, but must be {dtype}.")
        return self.files.get(name)

    def finite(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """As get, for values none of which is NaN or infinite."""
        value = self.get(name, shape)
        # In parts: the check takes several times the memory of what it looks at.
        if not all(part.isfinite().all() for part in torch.split(value.flatten(), 1 << 24)):
            raise CheckpointError(f"{name} holds NaN or infinity. The file is damaged, or its calibration failed.")
        return value

    def positive(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """float32 scales, all finite and greater than zero."""
        if self.files.dtype(name) not in (torch.float32, torch.float16, torch.bfloat16):
            raise CheckpointError(f"{name} must be float32, float16 or bfloat16, not {self.files.dtype(name)}.")
        value = self.get(name, shape).float()
        self.check_positive(name, value)
        return value

    def check_positive(self, name: str, value: Tensor) -> None:
        if not (value.isfinite() & (value > 0)).all():
            raise CheckpointError(
                f"{name} holds a scale that is NaN, infinite, zero or negative. The file is damaged, or its "
                "calibration failed; quantize again."
            )


def read_scheme(checked: Checked, config: ModelConfig, layer: int, metadata: Metadata | None) -> AttentionScheme | None:
    """The scheme of one layer, or None where the layer has no fa_* tensors and its attention is float.

    Both the names that the tool writes (`fa_k.scale`) and those of the manual (`k_scale`) are read, with the
    shapes [heads, 1] and [heads, head_dim].

    Raises:
        CheckpointError: some of the layer's tensors are missing, or their values or shapes are impossible.
        UnsupportedError: the ecosystem's format with zero points, which its own runtime forbids.
    """
    tables = _Tables(checked, config, f"model.layers.{layer}.self_attn.")
    if not tables.any():
        if metadata is not None and metadata.recipe.attention is not None:
            raise CheckpointError(
                f"{tables.prefix} has no fa_* tensors, but the recipe quantizes every layer's attention."
            )
        return None
    try:
        return _foreign(tables, config) if metadata is None else _ours(tables, config, metadata)
    except ValueError as error:
        raise CheckpointError(f"{tables.prefix}: the fa_* tensors do not go together: {error}.") from None


class _Tables:
    """The fa_* tensors of one layer by their short names, such as `k.scale`."""

    def __init__(self, checked: Checked, config: ModelConfig, prefix: str) -> None:
        self.checked = checked
        self.prefix = prefix
        self.dim = config.head_dim
        self.heads = {"q": config.num_heads, "k": config.num_kv_heads, "v": config.num_kv_heads}
        self.blocks = -(-config.max_position // MAP_BLOCK)

    def any(self) -> bool:
        return any(
            self.find(f"{part}.{kind}") is not None
            for part in "qkv"
            for kind in ("scale", "offset", "center", "equalizer", "rotation_sign")
        )

    def find(self, short: str) -> str | None:
        part, kind = short.split(".")
        for name in (f"{self.prefix}fa_{short}", f"{self.prefix}{part}_{kind}"):
            if name in self.checked:
                return name
        return None

    def _table(self, short: str) -> tuple[str, tuple[int, int]] | None:
        name = self.find(short)
        if name is None:
            return None
        heads = self.heads[short[0]]
        shape = self.checked.files.shape(name)
        if shape == (heads, 1) or shape == (heads, self.dim):
            return name, (heads, shape[1])
        raise CheckpointError(
            f"{name} has shape {list(shape)}, but must be [{heads}, 1] (per head) or [{heads}, {self.dim}] "
            "(per channel)."
        )

    def scale(self, short: str) -> Tensor | None:
        found = self._table(short)
        if found is None:
            return None
        scale = self.checked.positive(*found)
        # The ecosystem's runtime repeats a scale per head over the channels; that is still a scale per head.
        return scale[:, :1].contiguous() if (scale == scale[:, :1]).all() else scale

    def offset(self, short: str) -> Tensor | None:
        found = self._table(short)
        if found is None:
            return None
        offset = self.checked.finite(*found).float()
        if (offset.abs() > 255).any():
            raise CheckpointError(f"{found[0]} holds a zero point beyond ±255 steps, which int8 cannot use.")
        return offset if offset.any() else None

    def maps(self, short: str, positive: bool = False) -> Tensor | None:
        """A table of K's map, [Hkv, D], or [blocks, Hkv, D] with one for each block of the context's positions."""
        name = self.find(short)
        if name is None:
            return None
        shape: tuple[int, ...] = (self.heads[short[0]], self.dim)
        if len(self.checked.files.shape(name)) == 3:
            shape = (self.blocks, *shape)
        read = self.checked.positive if positive else self.checked.finite
        return read(name, shape).float()

    def sign(self) -> Tensor | None:
        name = self.find("k.rotation_sign")
        if name is None:
            return None
        sign = self.checked.finite(name, (self.dim,)).float()
        if (sign.abs() != 1).any():
            raise CheckpointError(f"{name} must hold +1 and -1 only.")
        return sign


def _foreign(tables: _Tables, config: ModelConfig) -> AttentionScheme:
    for kind in ("center", "equalizer", "rotation_sign"):
        if tables.find(f"k.{kind}") is not None:
            raise CheckpointError(
                f"{tables.prefix}fa_k.{kind} is there, but the description has no metadata.faquant that says how it "
                "is to be used. The description is not the one this checkpoint was written with."
            )
    scales = {part: tables.scale(f"{part}.scale") for part in "qkv"}
    missing = [f"fa_{part}.scale" for part, scale in scales.items() if scale is None]
    if missing:
        raise CheckpointError(
            f"{tables.prefix} has some fa_* tensors but lacks {', '.join(missing)}. A layer has all of them, or none "
            "and float attention."
        )
    for part in "qkv":
        if tables.offset(f"{part}.offset") is not None:
            raise UnsupportedError(
                f"{tables.prefix}fa_{part}.offset is not zero. In the ecosystem's format zero points must be 0; "
                "quantize with the recipe 'static' for a calibrated cache that is better than symmetric."
            )
    return AttentionScheme(
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        q_scale=scales["q"],
        k_scale=scales["k"],
        v_scale=scales["v"],
        p_levels=P_LEVELS["int8"],
    )


def _ours(tables: _Tables, config: ModelConfig, metadata: Metadata) -> AttentionScheme:
    attention = metadata.recipe.attention
    if attention is None:
        raise CheckpointError(f"{tables.prefix} has fa_* tensors, but the recipe in the metadata has no attention.")
    if tables.offset("q.offset") is not None:
        raise UnsupportedError(f"{tables.prefix}fa_q.offset is not zero; q is quantized symmetrically.")
    k_scale, v_scale = tables.scale("k.scale"), tables.scale("v.scale")
    center, equalizer = tables.maps("k.center"), tables.maps("k.equalizer", positive=True)
    trivial = equalizer is not None and bool((equalizer == 1).all())
    for name, there, asked in (
        ("fa_q.scale", tables.find("q.scale") is not None, attention.q_scale != "token"),
        ("fa_k.center", center is not None, attention.center),
        ("fa_k.equalizer", equalizer is not None and (attention.equalize or not trivial), attention.equalize),
    ):
        if there != asked:
            raise CheckpointError(
                f"{tables.prefix}{name} is {'there' if there else 'missing'}, which contradicts the recipe in the "
                "metadata."
            )
    dynamic = attention.kv_scale == "token"
    for part in "kv":
        found = tables.find(f"{part}.scale")
        if found is not None and not dynamic:
            per_head = tables.checked.files.shape(found)[-1] == 1
            if per_head != (attention.kv_scale == "head"):
                raise CheckpointError(
                    f"{found} contradicts the recipe in the metadata: kv_scale {attention.kv_scale!r}."
                )
    for part, scale in (("k", k_scale), ("v", v_scale)):
        if (scale is None) != dynamic:
            raise CheckpointError(
                f"{tables.prefix}fa_{part}.scale is {'missing' if scale is None else 'there'}, but the recipe in the "
                f"metadata says kv_scale {attention.kv_scale!r}."
            )
    return AttentionScheme(
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        k_center=center,
        k_equalizer=equalizer,
        rotation_block=metadata.qk_block,
        rotation_sign=tables.sign(),
        v_rotation_block=0 if metadata.v_folded else metadata.v_block,
        q_scale=tables.scale("q.scale"),
        k_scale=k_scale,
        k_offset=tables.offset("k.offset"),
        v_scale=v_scale,
        v_offset=tables.offset("v.offset"),
        p_levels=P_LEVELS[attention.p],
        quantized_sum=not dynamic,
    )
