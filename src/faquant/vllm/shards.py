"""One rank's share of a model in tensor parallelism, such that any number of ranks gives the same bits.

q, k, v, gate, up and the head are cut by outputs, as everywhere. o_proj and down_proj are cut by outputs too, not by
inputs: their input rows are gathered first, so that each rank sees the whole row that it rounds, rotates and
multiplies, and nothing is summed over ranks. What a rank computes is a part of the columns of one machine's result.

With `reduce`, they are cut by inputs, as is usual: less is sent, but each rank rounds its part of a row by a scale of
its own, and float sums are added, so the bits depend on the number of ranks.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from ..checkpoint.model_config import ModelConfig
from ..errors import UnsupportedError
from ..kernels.arrays import Array, contiguous, empty
from ..kernels.backend import Backend, Linear
from ..kernels.scheme import AttentionScheme
from ..kernels.tables import DynamicTable, FloatTable, LinearTable, StaticTable
from ..model.ranks import Heads, outputs_of, part

Gather = Callable[[Array], Array]
"""[tokens, n] of each rank → [tokens, ranks · n], in the order of the ranks, on all of them."""

Reduce = Callable[[Array], Array]
"""[tokens, n] of each rank → their sum, on all ranks."""


def gathered(x: Array, size: int, ranks: int, gather: Gather) -> Array:
    """All `size` columns [tokens, size] of which each rank has its part."""
    width = -(-size // ranks)
    if x.shape[1] < width:
        wide = empty(x, len(x), width)
        wide[:, : x.shape[1]] = x
        wide[:, x.shape[1] :] = 0
        x = wide
    return gather(x)[:, :size]


Table = TypeVar("Table", bound=LinearTable)


def with_outputs(table: Table, outputs: range) -> Table:
    """The table of some of a linear's outputs."""
    rows = slice(outputs.start, outputs.stop)
    parts: dict[str, Any] = {"weight": np.ascontiguousarray(table.weight[rows])}
    if isinstance(table, StaticTable):
        parts |= {"quant_bias": table.quant_bias[rows], "deq_scale": table.deq_scale[rows]}
    else:
        parts["bias"] = None if table.bias is None else table.bias[rows]
        if not isinstance(table, FloatTable):
            parts["scale"] = table.scale[rows]
    return replace(table, **parts)


def with_inputs(table: Table, name: str, rank: int, ranks: int) -> Table:
    """The table of the rank's part of a linear's inputs. What is added to the sum is on the first rank.

    Raises:
        UnsupportedError: a Hadamard block would be cut.
    """
    own = part(table.weight.shape[1], rank, ranks)
    columns = slice(own.start, own.stop)
    parts: dict[str, Any] = {"weight": np.ascontiguousarray(table.weight[:, columns])}
    if isinstance(table, StaticTable):
        parts["quant_bias"] = table.quant_bias if rank == 0 else np.zeros_like(table.quant_bias)
    else:
        parts["bias"] = table.bias if rank == 0 else None
    if isinstance(table, DynamicTable) and table.hadamard_block and own.stop % table.hadamard_block:
        raise UnsupportedError(
            f"{ranks} ranks would cut {name}'s Hadamard blocks of {table.hadamard_block} inputs. Leave out "
            "faquant_scales, so that rows are gathered, or choose another --tensor-parallel-size."
        )
    if not isinstance(table, FloatTable) and table.input_multiplier is not None:
        parts["input_multiplier"] = np.ascontiguousarray(table.input_multiplier[columns])
    return replace(table, **parts)


def with_heads(scheme: AttentionScheme, heads: Heads) -> AttentionScheme:
    """The scheme of some of a layer's heads."""
    kv, q = (slice(some.start, some.stop) for some in (heads.kv, heads.q))
    parts: dict[str, Any] = {"num_heads": len(heads.q), "num_kv_heads": len(heads.kv)}
    for name in ("q_scale", "k_scale", "k_offset", "v_scale", "v_offset"):
        table = getattr(scheme, name)
        parts[name] = None if table is None else table[q if name == "q_scale" else kv]
    for name in ("k_center", "k_equalizer"):
        table = getattr(scheme, name)
        parts[name] = None if table is None else table[..., kv, :]
    return replace(scheme, **parts)


class GatheredLinear:
    """A linear whose outputs are divided among ranks: all ranks get all outputs.

    Args:
        linear: this rank's outputs.
        inputs: the number of inputs if they are divided too; None: each rank has all of them.
        outputs: the number of outputs of all ranks.
    """

    is_int8 = False
    """No rank can run it alone, as fused layers would."""

    def __init__(self, linear: Linear, inputs: int | None, outputs: int, ranks: int, gather: Gather) -> None:
        self._linear, self._inputs, self._outputs, self._ranks, self._gather = linear, inputs, outputs, ranks, gather

    def __call__(self, x: Array) -> Array:
        if self._inputs is not None:
            x = contiguous(gathered(x, self._inputs, self._ranks, self._gather))
        return gathered(self._linear(x), self._outputs, self._ranks, self._gather)

    @property
    def nbytes(self) -> int:
        return self._linear.nbytes


class SummedLinear:
    """A linear whose inputs are divided among ranks: all ranks get the sum of what each computes."""

    is_int8 = False

    def __init__(self, linear: Linear, reduce: Reduce) -> None:
        self._linear, self._reduce = linear, reduce

    def __call__(self, x: Array) -> Array:
        return self._reduce(self._linear(x))

    @property
    def nbytes(self) -> int:
        return self._linear.nbytes


@dataclass(frozen=True)
class Shard:
    """Makes the linears of one rank."""

    config: ModelConfig
    backend: Backend
    heads: Heads
    rank: int
    ranks: int
    gather: Gather
    reduce: Reduce | None = None

    def linear(self, name: str, table: LinearTable) -> Linear:
        """This rank's part of the linear with this checkpoint name."""
        if self.ranks == 1:
            return self.backend.linear(table)
        kind = name.rpartition(".")[2]
        outputs, inputs = table.weight.shape
        if self.reduce is not None and kind in ("o_proj", "down_proj"):
            return SummedLinear(self.backend.linear(with_inputs(table, name, self.rank, self.ranks)), self.reduce)
        own = self.backend.linear(with_outputs(table, outputs_of(self.config, name, self.rank, self.ranks)))
        if kind in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
            return own
        divided = inputs if kind in ("o_proj", "down_proj") else None
        return GatheredLinear(own, divided, outputs, self.ranks, self.gather)
