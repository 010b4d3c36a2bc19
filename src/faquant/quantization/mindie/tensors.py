"""The tensors of a layer in the checkpoint, in the order of msModelSlim's description."""

from collections.abc import Iterator
from contextlib import contextmanager

from ...checkpoint.model_config import LINEARS, ModelConfig
from ...errors import CheckpointError
from ...kernels.backend import Linear, Norm
from ...kernels.torch_backend import TorchRMSNorm
from ...model.decoder import DecoderLayer
from ..tensors import NamedTensor
from .linears import MindieLinear, SmoothedLinear
from .smoothing import float_linear_of


def layer_tensors(layer: DecoderLayer, name: str, config: ModelConfig) -> Iterator[NamedTensor]:
    """Linears and norms of a layer."""
    for module in LINEARS:
        short = module.rpartition(".")[2]
        linear = getattr(layer, short)
        if isinstance(linear, SmoothedLinear):
            yield from linear.tensors(f"{name}.{module}", config.has_bias(f"{name}.{module}"))
        else:
            yield from linear_tensors(linear, f"{name}.{module}")
        if short == "o_proj" and layer.q_norm is not None and layer.k_norm is not None:
            yield from norm_tensors(layer.q_norm, f"{name}.self_attn.q_norm")
            yield from norm_tensors(layer.k_norm, f"{name}.self_attn.k_norm")
    yield from norm_tensors(layer.attention_norm, f"{name}.input_layernorm")
    yield from norm_tensors(layer.mlp_norm, f"{name}.post_attention_layernorm")


def linear_tensors(linear: Linear, name: str) -> Iterator[NamedTensor]:
    """The tensors of a linear in the checkpoint."""
    if isinstance(linear, MindieLinear):
        yield from linear.tensors(name)
        return
    linear = float_linear_of(linear)
    yield f"{name}.weight", "FLOAT", linear.weight
    if linear.bias is not None:
        yield f"{name}.bias", "FLOAT", linear.bias


def norm_tensors(norm: Norm, name: str) -> Iterator[NamedTensor]:
    """Weight and bias of a norm."""
    if not isinstance(norm, TorchRMSNorm):
        raise TypeError(f"calibration needs a float model, not one with a {type(norm).__name__}")
    yield f"{name}.weight", "FLOAT", norm.weight
    if norm.bias is not None:
        yield f"{name}.bias", "FLOAT", norm.bias


@contextmanager
def located(name: str) -> Iterator[None]:
    """Add the name of the module to errors."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from None
