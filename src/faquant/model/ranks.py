"""How a model is divided among ranks: heads and outputs of linears among those of tensor parallelism, layers among the
stages of a pipeline."""

from dataclasses import dataclass

from ..checkpoint.model_config import ModelConfig
from ..errors import UnsupportedError


@dataclass(frozen=True)
class Heads:
    """The attention heads of one rank. With more ranks than key/value heads, several ranks hold the same one.

    Attributes:
        q, kv: ranges of the model's heads.
    """

    q: range
    kv: range

    @classmethod
    def of(cls, config: ModelConfig, rank: int, ranks: int) -> "Heads":
        """Raises: UnsupportedError: the heads cannot be cut into so many parts."""
        heads, kv_heads = config.num_heads, config.num_kv_heads
        if ranks > 1 and config.family.qk_norm == "all":
            raise UnsupportedError(
                f"{config.model_type} has norms over all heads of q and k, which must be on one rank. "
                "--tensor-parallel-size can be 1; a pipeline can have several stages."
            )
        if heads % ranks or (kv_heads % ranks and ranks % kv_heads):
            fitting = [n for n in range(1, heads + 1) if not heads % n and (not kv_heads % n or not n % kv_heads)]
            raise UnsupportedError(
                f"{heads} query heads and {kv_heads} key/value heads cannot be divided among {ranks} ranks. "
                f"--tensor-parallel-size can be {', '.join(map(str, fitting))}."
            )
        each = max(1, kv_heads // ranks)
        first = rank * kv_heads // ranks
        return cls(part(heads, rank, ranks), range(first, first + each))


def part(size: int, rank: int, ranks: int) -> range:
    """The rank's part of `size` columns. Parts are equal but for the last ones, which may be shorter or empty."""
    width = -(-size // ranks)
    return range(min(rank * width, size), min((rank + 1) * width, size))


def outputs_of(config: ModelConfig, name: str, rank: int, ranks: int) -> range:
    """The outputs that this rank computes of the linear with this checkpoint name: those of its heads for q, k and v,
    of all others its part.

    Raises: UnsupportedError: the heads cannot be cut into so many parts.
    """
    kind, dim = name.rpartition(".")[2], config.head_dim
    if kind in ("q_proj", "k_proj", "v_proj"):
        heads = Heads.of(config, rank, ranks)
        own = heads.q if kind == "q_proj" else heads.kv
        return range(own.start * dim, own.stop * dim)
    return part(config.linear_shape(name)[0], rank, ranks)


def layers_of(num_layers: int, stage: int, stages: int) -> range:
    """The layers of one stage of a pipeline, as vLLM 0.32 divides them (`vllm.distributed.utils.get_pp_indices`) unless
    VLLM_PP_LAYER_PARTITION is set.

    Layers beyond an equal number for all go to the stages before the last one, one each, the later stages first.

    Raises: UnsupportedError: there are more stages than layers.
    """
    if stages > num_layers:
        raise UnsupportedError(
            f"{num_layers} layers cannot be divided among {stages} stages. "
            f"--pipeline-parallel-size can be at most {num_layers}."
        )
    each, more = divmod(num_layers, stages)
    counts = [each + (stages - 1 - more <= number < stages - 1) for number in range(stages)]
    first = sum(counts[:stage])
    return range(first, first + counts[stage])
