"""Hugging Face directories of float models."""

from ..checkpoint.files import DESCRIPTION_NAMES
from ..errors import CheckpointError
from ..kernels.tables import LinearTable
from .base import Opened, Source, check_tensors, float_table


class FloatFormat:
    """The format of float models."""

    name = "float"

    def detect(self, source: Source) -> bool:
        return source.description is None and not source.quantization.raw

    def open(self, source: Source) -> Opened:
        return OpenedFloat(source)


class OpenedFloat(Opened):
    """A float model."""

    format = FloatFormat.name

    def __init__(self, source: Source) -> None:
        super().__init__(source, source.open_files())
        dtypes = self.files.dtypes()
        quantized = next((name for name in self.config.linears if dtypes.get(f"{name}.weight") == "int8"), None)
        if quantized is not None:
            raise CheckpointError(
                f"{quantized}.weight has dtype int8, but neither quantization_config in config.json nor a "
                f"{DESCRIPTION_NAMES[0]} says how it is quantized. The directory is incomplete."
            )
        self.ignored = check_tensors(self.config, self.files)

    def linear_type(self, name: str) -> str:
        return "FLOAT"

    def linear(self, name: str) -> LinearTable:
        return float_table(self.checked, self.config, name)
