"""The tensors of attention schemes in faquant's format."""

from collections.abc import Iterator, Sequence

import torch

from ..formats.msmodelslim.description import FA_TYPE
from ..kernels.quantizers import tensor_of
from ..kernels.scheme import AttentionScheme
from .tensors import NamedTensor


def scheme_tensors(layer: int, scheme: AttentionScheme | None) -> Iterator[NamedTensor]:
    """The tables of one layer; none for float attention."""
    if scheme is None:
        return
    prefix = f"model.layers.{layer}.self_attn.fa_"
    tables = {
        "k.center": scheme.k_center,
        "k.equalizer": scheme.k_equalizer,
        "q.scale": scheme.q_scale,
        "k.scale": scheme.k_scale,
        "k.offset": scheme.k_offset,
        "v.scale": scheme.v_scale,
        "v.offset": scheme.v_offset,
    }
    if all(table is None for table in tables.values()):
        # A tensor that marks this layer's attention as quantized.
        tables["k.equalizer"] = torch.ones(scheme.num_kv_heads, scheme.head_dim)
    for name, table in tables.items():
        if table is not None:
            yield prefix + name, FA_TYPE, tensor_of(table)


def all_scheme_tensors(schemes: Sequence[AttentionScheme | None]) -> Iterator[NamedTensor]:
    """The tables of all layers."""
    for layer, scheme in enumerate(schemes):
        yield from scheme_tensors(layer, scheme)
