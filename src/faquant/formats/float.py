"""Hugging Face directories of float models."""

from ..checkpoint.tensors import FLOAT_DTYPES, TensorFiles
from ..errors import CheckpointError
from ..kernels.tables import LinearTable
from .base import Opened, Source, check_shapes, float_table


class FloatFormat:
    """The format of float models."""

    name = "float"

    def detect(self, source: Source) -> bool:
        return source.description is None and source.config.quant_method is None

    def open(self, source: Source) -> Opened:
        return OpenedFloat(source)


class OpenedFloat(Opened):
    """A float model."""

    def __init__(self, source: Source) -> None:
        super().__init__(source, TensorFiles.open(source.directory))
        check_shapes(self.config, self.files)
        for name, dtype in self.files.dtypes().items():
            if dtype not in FLOAT_DTYPES:
                raise CheckpointError(
                    f"{name} has dtype {dtype}, but there is no quant_model_description.json to say how it is "
                    "quantized. Download that file too."
                )

    def linear_type(self, name: str) -> str:
        return "FLOAT"

    def linear(self, name: str) -> LinearTable:
        return float_table(self.checked, self.config, name)
