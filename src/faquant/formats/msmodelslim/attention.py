"""The attention scheme of a layer, read from its fa_* tensors."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import NamedTuple

import numpy as np

from ...checkpoint.model_config import ModelConfig
from ...errors import CheckpointError, UnsupportedError
from ...kernels.arrays import Floats
from ...kernels.scheme import MAP_BLOCK, AttentionScheme
from ..checked import Checked
from ..kv_tables import StaticTable, compact, read_table, scheme_of, zero_points

KINDS = ("scale", "offset", "center", "equalizer", "rotation_sign")
"""Ends of the names of fa_* tensors."""


def fa_names(config: ModelConfig) -> Iterator[str]:
    """All names that fa_* tensors may have, those of MindIE's manual included."""
    for layer in range(config.num_layers):
        for part, kind in product("qkv", KINDS):
            yield from (f"model.layers.{layer}.self_attn.{name}" for name in (f"fa_{part}.{kind}", f"{part}_{kind}"))


def c8_names(config: ModelConfig) -> Iterator[str]:
    """All names of the tables of a C8 cache."""
    for layer, part, kind in product(range(config.num_layers), "kv", ("scale", "offset")):
        yield f"model.layers.{layer}.self_attn.{part}_proj.kv_cache_{kind}"


class AttentionTables:
    """The fa_* tensors of one layer by their short names, such as `k.scale`."""

    def __init__(self, checked: Checked, config: ModelConfig, prefix: str) -> None:
        self.checked = checked
        self.prefix = prefix
        self.dim = config.head_dim
        self.heads = {"q": config.num_heads, "k": config.num_kv_heads, "v": config.num_kv_heads}
        self.blocks = -(-config.max_position // MAP_BLOCK)

    def any(self) -> bool:
        return any(self.find(f"{part}.{kind}") is not None for part in "qkv" for kind in KINDS)

    def find(self, short: str) -> str | None:
        part, kind = short.split(".")
        found = [name for name in (f"{self.prefix}fa_{short}", f"{self.prefix}{part}_{kind}") if name in self.checked]
        if len(found) > 1:
            raise CheckpointError(f"There are both {found[0]} and {found[1]}. Remove the wrong one.")
        return found[0] if found else None

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
        return compact(self.checked.positive(*found))

    def offset(self, short: str) -> Floats | None:
        found = self._table(short)
        if found is None:
            return None
        return zero_points(found[0], self.checked.floats(*found))

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


class AttentionType(NamedTuple):
    """How q, K and V of a layer are quantized: `static`, `dynamic` or `float`."""

    q: str = "static"
    k: str = "static"
    v: str = "static"

    @classmethod
    def parse(cls, text: str, name: str) -> "AttentionType":
        """Parse a `quant_type` of the newer writer, such as Q_INT8_DYNAMIC_KV_INT8; `name` is its key.

        Raises:
            UnsupportedError: a type is not int8, or P is quantized, or K or V stays float.
        """
        kinds = dict.fromkeys("qkv", "float")
        part = r"(?:([QKV]+)_)?INT8(_DYNAMIC)?"
        found = re.findall(part, text)
        acts = "".join(which or "QKV" for which, _ in found)
        if not re.fullmatch(f"{part}(_{part})*", text) or len(set(acts)) < len(acts):
            raise UnsupportedError(f"{name}: attention of type {text!r:.80} is not supported; q, k, v in int8 are.")
        for which, dynamic in found:
            kinds.update(dict.fromkeys((which or "QKV").lower(), "dynamic" if dynamic else "static"))
        if "float" in (kinds["k"], kinds["v"]):
            raise UnsupportedError(f"{name}: attention of type {text!r:.80} keeps a part of the cache float.")
        return cls(**kinds)


def read_scheme(
    checked: Checked, config: ModelConfig, layer: int, declared: str | None = None
) -> AttentionScheme | None:
    """The scheme of one layer, or None if the layer has no fa_* tensors and thus float attention.

    Accepts the names that msModelSlim writes (`fa_k.scale`) and those of MindIE's manual (`k_scale`), with the shapes
    [heads, 1] and [heads, head_dim].

    Args:
        declared: the layer's `quant_type`, if the newer writer made the checkpoint.

    Raises:
        CheckpointError: some of the layer's tensors are missing, or their values or shapes are invalid.
        UnsupportedError: there are zero points, which MindIE does not support, or the declared type is not supported.
    """
    tables = AttentionTables(checked, config, f"model.layers.{layer}.self_attn.")
    with tables.consistent():
        if declared is None:
            return _scheme(tables, config, AttentionType()) if tables.any() else None
        return _scheme(tables, config, AttentionType.parse(declared, f"{tables.prefix}quant_type"))


def _scheme(tables: AttentionTables, config: ModelConfig, kinds: AttentionType) -> AttentionScheme:
    for kind in ("center", "equalizer", "rotation_sign"):
        if tables.find(f"k.{kind}") is not None:
            raise CheckpointError(
                f"{tables.prefix}fa_k.{kind} exists, but the description has no metadata.faquant that says how it "
                "is used. The description does not belong to this checkpoint."
            )
    scales = {part: tables.scale(f"{part}.scale") for part in "qkv"}
    static = [part for part in "qkv" if getattr(kinds, part) == "static"]
    missing = [f"fa_{part}.scale" for part in static if scales[part] is None]
    if missing:
        raise CheckpointError(
            f"{tables.prefix} has some fa_* tensors but lacks {', '.join(missing)}. A layer must have all of them, or "
            "none and float attention."
        )
    for part in "qkv":
        if part not in static and scales[part] is not None:
            raise CheckpointError(
                f"{tables.prefix}fa_{part}.scale is there, but quant_type says that {part} is {getattr(kinds, part)}."
            )
        if tables.offset(f"{part}.offset") is not None:
            raise UnsupportedError(
                f"{tables.prefix}fa_{part}.offset is not zero. In msModelSlim's format zero points must be 0; "
                "quantize with the recipe 'portable' for a calibrated cache with zero points."
            )
    found = {part: None if scale is None else StaticTable(scale) for part, scale in scales.items()}
    # MindIE's kernel, which needs calibrated q, rounds P to 8 bits; no kernel is documented for the other types.
    return scheme_of(config, **found, p="int8" if len(static) == 3 else "int16")


def read_c8_scheme(checked: Checked, config: ModelConfig, layer: int) -> AttentionScheme | None:
    """The scheme of one layer with a C8 cache, or None if the layer has no tables.

    Raises:
        CheckpointError: a table is missing, or its shape or values are invalid.
    """
    prefix = f"model.layers.{layer}.self_attn."
    names = {part: f"{prefix}{part}_proj.kv_cache" for part in "kv"}
    if not any(f"{name}_{kind}" in checked for name in names.values() for kind in ("scale", "offset")):
        return None
    heads, dim = config.num_kv_heads, config.head_dim
    k, v = (read_table(checked, f"{name}_scale", f"{name}_offset", heads, dim) for name in names.values())
    return scheme_of(config, k, v)
