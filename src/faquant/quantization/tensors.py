"""The float source as quantizing reads it: tensors in the dtype of the file, copied out of it."""

import torch
from torch import Tensor

from ..checkpoint.model_config import ModelConfig
from ..errors import CheckpointError
from ..formats.checked import Tensors
from ..kernels.arrays import Stored
from ..kernels.quantizers import tensor_of
from ..kernels.torch_backend import TorchLinear

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class SourceTensors:
    """Tensors of a float directory by their checkpoint names. They are shared: not to be changed in place.

    The tensors of one layer, or those that belong to no layer, are read at once, and kept until others are asked for.
    """

    def __init__(self, files: Tensors) -> None:
        self.files = files
        self._names = files.names()
        self._known = frozenset(self._names)
        self._held: dict[str, Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def names(self) -> list[str]:
        return list(self._names)

    def get(self, name: str) -> Tensor:
        """The tensor, in the dtype of the file."""
        return tensor_of(self.files.read_all([name])[name])

    def finite(self, name: str) -> Tensor:
        """As get. Raises: CheckpointError: a value is NaN or infinite."""
        if name not in self._held:
            group = _group_of(name)
            wanted = [name, *(other for other in self._names if group and _group_of(other) == group)]
            self._held = {key: tensor_of(stored) for key, stored in self.files.read_all(wanted).items()}
            for key, value in self._held.items():
                # In parts: the check takes several times the memory of what it looks at.
                if not all(part.isfinite().all() for part in torch.split(value.flatten(), 1 << 24)):
                    raise CheckpointError(
                        f"{key} holds NaN or infinity. The file is damaged, or its calibration failed."
                    )
        return self._held[name]

    def linear(self, name: str, config: ModelConfig, dtype: torch.dtype = torch.float32) -> TorchLinear:
        """The linear `name`, in `dtype`; a tied head is the embedding."""
        if name == "lm_head" and "lm_head.weight" not in self:
            return TorchLinear(self.finite("model.embed_tokens.weight").to(dtype))
        bias = self.finite(f"{name}.bias").to(dtype) if config.linears[name].has_bias else None
        return TorchLinear(self.finite(f"{name}.weight").to(dtype), bias)


def _group_of(name: str) -> str:
    """Such as `model.layers.3.`; empty for what belongs to no layer."""
    parts = name.split(".", 3)
    return ".".join(parts[:3]) + "." if parts[:2] == ["model", "layers"] and len(parts) == 4 else ""


def stored_of(tensor: Tensor) -> Stored:
    """A tensor as NumPy holds what a file has; uint16 is bfloat16."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view("uint16")
    return tensor.numpy()
