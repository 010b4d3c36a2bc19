"""Checkpoints of msModelSlim, for MindIE: quant_model_description.json next to the weights."""

from ...checkpoint.tensors import TensorFiles
from ...errors import CheckpointError
from ...kernels.scheme import AttentionScheme
from ...kernels.tables import LinearTable
from ..base import Opened, Source, check_shapes, float_table
from ..faquant.metadata import ROTATED_TYPE
from .attention import read_scheme
from .description import Description, effective_fa_quant_type
from .linears import check_attention_types, check_linear, dynamic_table, static_table


class MsModelSlimFormat:
    """The format of checkpoints with a description."""

    name = "msmodelslim"

    def detect(self, source: Source) -> bool:
        return source.description is not None

    def open(self, source: Source) -> Opened:
        return OpenedMsModelSlim(source)


class OpenedMsModelSlim(Opened):
    """A checkpoint with a description."""

    def __init__(self, source: Source) -> None:
        super().__init__(source, TensorFiles.open(source.directory))
        if source.description is None:
            raise CheckpointError(f"{source.directory} has no description of a quantized model.")
        self.types: Description = source.description
        self.types.check_against(self.files)
        self._check_metadata()
        check_shapes(self.config, self.files)
        fa_quant_type = effective_fa_quant_type(self.raw_config, self.types)
        check_attention_types(self.types)
        for name in (*self.config.layer_linears, "lm_head"):
            if self.linear_type(name) != "FLOAT":
                check_linear(self.checked, self.config, self.types, name)
                self._check_rotation(name)
        if fa_quant_type:
            self.schemes = [self._scheme(layer) for layer in range(self.config.num_layers)]
            if not any(self.schemes):
                raise CheckpointError(
                    f"{self.directory}: the description has fa_quant_type {fa_quant_type!r}, but no layer has fa_* "
                    "tensors."
                )

    def linear_type(self, name: str) -> str:
        return self.types.tensor_types.get(f"{name}.weight", "FLOAT")

    def linear(self, name: str) -> LinearTable:
        kind = self.linear_type(name)
        if kind == "FLOAT":
            return float_table(self.checked, self.config, name)
        if kind == "W8A8":
            return static_table(self.checked, self.config, name)
        return dynamic_table(self.checked, self.config, name, self._hadamard_block(name))

    def _check_metadata(self) -> None:
        """There is no metadata beyond the description."""

    def _scheme(self, layer: int) -> AttentionScheme | None:
        return read_scheme(self.checked, self.config, layer)

    def _hadamard_block(self, name: str) -> int:
        return 0

    def _check_rotation(self, name: str) -> None:
        if self.linear_type(name) == ROTATED_TYPE:
            raise CheckpointError(f"{name}.weight has type {ROTATED_TYPE}, but the metadata has no rotation for it.")
