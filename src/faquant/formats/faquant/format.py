"""faquant's checkpoints: msModelSlim's description, with `metadata.faquant` for what it cannot express."""

from ...errors import CheckpointError
from ...kernels.scheme import AttentionScheme
from ..base import Opened, Source
from ..msmodelslim.format import OpenedMsModelSlim
from .attention import read_scheme
from .metadata import ROTATED_TYPES, Metadata, parse_metadata


class FaquantFormat:
    """The format of checkpoints with `metadata.faquant`."""

    name = "faquant"

    def detect(self, source: Source) -> bool:
        return source.is_ours

    def open(self, source: Source) -> Opened:
        return OpenedFaquant(source)


class OpenedFaquant(OpenedMsModelSlim):
    """A checkpoint written by faquant."""

    format = FaquantFormat.name
    metadata: Metadata

    @property
    def _signed(self) -> bool:
        return self.metadata.imported is not None  # auto-round writes negative scales

    def _check_metadata(self) -> None:
        self.metadata = parse_metadata(self.types.metadata, self.config, str(self.directory))
        if self.metadata.imported is not None:
            self.input_steps = self.metadata.imported.input_steps

    def _scheme(self, layer: int) -> AttentionScheme | None:
        return read_scheme(self.checked, self.config, layer, self.metadata)

    def _hadamard_block(self, name: str) -> int:
        return self.metadata.input_block(name)

    def _check_rotation(self, name: str) -> None:
        kind, rotated = self.linear_type(name), self.metadata.input_block(name) > 0
        if kind in ROTATED_TYPES and not rotated:
            raise CheckpointError(f"{name}.weight has type {kind}, but the metadata has no rotation for it.")
        if kind not in ROTATED_TYPES and rotated:
            raise CheckpointError(f"{name}.weight has type {kind}, but the metadata says that its input is rotated.")
