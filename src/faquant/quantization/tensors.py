"""Reads the tensors of the float source, in their stored dtype, as copies."""

import torch
from torch import Tensor

from ..checkpoint.model_config import ModelConfig
from ..errors import CheckpointError
from ..formats.base import Opened
from ..formats.checked import Tensors
from ..kernels.arrays import Stored
from ..kernels.quantizers import tensor_of
from ..kernels.tables import FloatTable

NamedTensor = tuple[str, str, Tensor]
"""Name, type in the description, tensor."""

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class SourceTensors:
    """Tensors of a float directory by their checkpoint names. They are shared, so do not modify them in place.
    `norm_offset` is added to the weights of norms, which are then float32.

    The tensors of one layer, or those outside the layers, are read together and cached until others are needed.
    """

    def __init__(self, files: Tensors, norm_offset: float = 0.0) -> None:
        self.files = files
        self._norm_offset = norm_offset
        self._names = files.names()
        self._known = frozenset(self._names)
        self._held: dict[str, Tensor] = {}

    @classmethod
    def of(cls, opened: Opened) -> "SourceTensors":
        """The tensors of an open float directory. What faquant has written (attention-only) has the offset already."""
        return cls(opened.files, opened.config.family.norm_offset if opened.metadata is None else 0.0)

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def names(self) -> list[str]:
        return list(self._names)

    def get(self, name: str) -> Tensor:
        """The tensor in its stored dtype."""
        return tensor_of(self.files.read_all([name])[name])

    def finite(self, name: str) -> Tensor:
        """As get. Raises: CheckpointError: a value is NaN or infinite."""
        if name not in self._held:
            group = _group_of(name)
            wanted = [name, *(other for other in self._names if group and _group_of(other) == group)]
            self._held = {key: tensor_of(stored) for key, stored in self.files.read_all(wanted).items()}
            for key, value in self._held.items():
                # In parts: the check needs several times the memory of its operand.
                if not all(part.isfinite().all() for part in torch.split(value.flatten(), 1 << 24)):
                    raise CheckpointError(
                        f"{key} holds NaN or infinity. The file is damaged, or its calibration failed."
                    )
        value = self._held[name]
        return value.float() + self._norm_offset if self._norm_offset and name.endswith("norm.weight") else value

    def float_table(self, name: str, config: ModelConfig) -> FloatTable:
        """The linear `name`, for a backend; a tied head is the embedding. Raises: as finite."""
        if name == "lm_head" and "lm_head.weight" not in self:
            return FloatTable(stored_of(self.finite("model.embed_tokens.weight")))
        bias = stored_of(self.finite(f"{name}.bias")) if config.linears[name].has_bias else None
        return FloatTable(stored_of(self.finite(f"{name}.weight")), bias)


def _group_of(name: str) -> str:
    """A prefix such as `model.layers.3.`; empty for tensors outside the layers."""
    parts = name.split(".", 3)
    return ".".join(parts[:3]) + "." if parts[:2] == ["model", "layers"] and len(parts) == 4 else ""


def stored_of(tensor: Tensor) -> Stored:
    """A tensor as a stored NumPy array; uint16 is bfloat16."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view("uint16")
    return tensor.numpy()
