"""The attention scheme of a layer, read from its fa_* tensors."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ...checkpoint.model_config import ModelConfig
from ...errors import CheckpointError, UnsupportedError
from ...kernels.arrays import Floats
from ...kernels.scheme import MAP_BLOCK, P_LEVELS, AttentionScheme
from ..checked import Checked


class AttentionTables:
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

    def scale(self, short: str) -> Floats | None:
        found = self._table(short)
        if found is None:
            return None
        scale = self.checked.positive(*found)
        # A scale per head may be repeated over the channels, as for MindIE; it is still a scale per head.
        return np.ascontiguousarray(scale[:, :1]) if (scale == scale[:, :1]).all() else scale

    def offset(self, short: str) -> Floats | None:
        found = self._table(short)
        if found is None:
            return None
        offset = self.checked.floats(*found)
        if (np.abs(offset) > 255).any():
            raise CheckpointError(f"{found[0]} holds a zero point beyond ±255 steps, which is useless in int8.")
        return offset if offset.any() else None

    def maps(self, short: str, positive: bool = False) -> Floats | None:
        """A table of K's map: [Hkv, D], or [blocks, Hkv, D] with one map per position block of the context."""
        name = self.find(short)
        if name is None:
            return None
        shape: tuple[int, ...] = (self.heads[short[0]], self.dim)
        if len(self.checked.files.shape(name)) == 3:
            shape = (self.blocks, *shape)
        return self.checked.positive(name, shape) if positive else self.checked.floats(name, shape)

    def sign(self) -> Floats | None:
        name = self.find("k.rotation_sign")
        if name is None:
            return None
        sign = self.checked.floats(name, (self.dim,))
        if (np.abs(sign) != 1).any():
            raise CheckpointError(f"{name} must hold +1 and -1 only.")
        return sign

    @contextmanager
    def consistent(self) -> Iterator[None]:
        """Name the layer in errors about contradictory tables."""
        try:
            yield
        except ValueError as error:
            raise CheckpointError(f"{self.prefix}: the fa_* tensors contradict each other: {error}.") from None


def read_scheme(checked: Checked, config: ModelConfig, layer: int) -> AttentionScheme | None:
    """The scheme of one layer, or None if the layer has no fa_* tensors and thus float attention.

    Accepts the names that msModelSlim writes (`fa_k.scale`) and those of MindIE's manual (`k_scale`), with the shapes
    [heads, 1] and [heads, head_dim].

    Raises:
        CheckpointError: some of the layer's tensors are missing, or their values or shapes are invalid.
        UnsupportedError: there are zero points, which MindIE does not support.
    """
    tables = AttentionTables(checked, config, f"model.layers.{layer}.self_attn.")
    with tables.consistent():
        return _scheme(tables, config) if tables.any() else None


def _scheme(tables: AttentionTables, config: ModelConfig) -> AttentionScheme:
    for kind in ("center", "equalizer", "rotation_sign"):
        if tables.find(f"k.{kind}") is not None:
            raise CheckpointError(
                f"{tables.prefix}fa_k.{kind} exists, but the description has no metadata.faquant that says how it "
                "is used. The description does not belong to this checkpoint."
            )
    scales = {part: tables.scale(f"{part}.scale") for part in "qkv"}
    missing = [f"fa_{part}.scale" for part, scale in scales.items() if scale is None]
    if missing:
        raise CheckpointError(
            f"{tables.prefix} has some fa_* tensors but lacks {', '.join(missing)}. A layer must have all of them, or "
            "none and float attention."
        )
    for part in "qkv":
        if tables.offset(f"{part}.offset") is not None:
            raise UnsupportedError(
                f"{tables.prefix}fa_{part}.offset is not zero. In msModelSlim's format zero points must be 0; "
                "quantize with the recipe 'static' for a calibrated cache with zero points."
            )
    return AttentionScheme(
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        q_scale=scales["q"],
        k_scale=scales["k"],
        v_scale=scales["v"],
        p_levels=P_LEVELS["int8"],
        p_float16=True,
    )
