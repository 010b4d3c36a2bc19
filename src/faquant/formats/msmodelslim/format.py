"""Checkpoints of msModelSlim, for MindIE: quant_model_description.json next to the weights."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ...errors import CheckpointError
from ...kernels.scheme import AttentionScheme
from ...kernels.tables import LinearTable
from ..base import Opened, Source, check_tensors, float_table, names_of_causal_lm, norm_names
from ..faquant.metadata import OWN_TYPES, SCALED_TYPE
from .attention import c8_names, fa_names, read_c8_scheme, read_scheme
from .description import C8_TYPE, FA_TYPE, NORM_COPY, Description, effective_fa_quant_type
from .linears import PARTS, check_attention_types, check_linear, dynamic_table, static_table


class MsModelSlimFormat:
    """The format of checkpoints with a description."""

    name = "msmodelslim"

    def detect(self, source: Source) -> bool:
        return source.description is not None

    def open(self, source: Source) -> Opened:
        return OpenedMsModelSlim(source)


class OpenedMsModelSlim(Opened):
    """A checkpoint with a description."""

    format = MsModelSlimFormat.name

    def __init__(self, source: Source) -> None:
        super().__init__(source, source.open_files())
        if source.description is None:
            raise CheckpointError(f"{source.directory} has no description of a quantized model.")
        types = source.description.tensor_types
        attention_types = source.description.attention_types
        names = names_of_causal_lm([*types, *attention_types], self.config.tie_word_embeddings)
        self.types: Description = replace(
            source.description,
            tensor_types={names.get(name, name): kind for name, kind in types.items()},
            extra={names.get(key, key): value for key, value in source.description.extra.items()},
        )
        self.types.check_against(self.files)
        self._check_metadata()
        check_attention_types(self.types)
        quantized = [name for name in self.config.linears if self.linear_type(name) != "FLOAT"]
        for name in quantized:
            kind = self.linear_type(name)
            if kind not in PARTS:
                raise CheckpointError(
                    f"{name}.weight has type {kind} in the description, which is not a type of linears."
                )
            self._check_rotation(name)
        self.ignored = check_tensors(self.config, self.files, self._names())
        for kind, tables in ((FA_TYPE, set(fa_names(self.config))), (C8_TYPE, set(c8_names(self.config)))):
            for name, described in self.types.tensor_types.items():
                if (described == kind) != (name in tables):
                    raise CheckpointError(f"{name} has type {described} in the description, but not the name of one.")
        for name in quantized:
            check_linear(self.checked, self.config, self.types, name, self._signed)
        self._check_norm_copies()
        self._read_schemes()

    @property
    def fa_quant_type(self) -> str | None:
        return FA_TYPE if any(self.schemes) and self.types.kv_cache_type is None else None

    @property
    def quant_type(self) -> str:
        return self.types.model_quant_type

    def linear_type(self, name: str) -> str:
        return self.types.tensor_types.get(f"{name}.weight", "FLOAT")

    def linear(self, name: str) -> LinearTable:
        kind = self.linear_type(name)
        if kind == "FLOAT":
            return float_table(self.checked, self.config, name)
        if kind in ("W8A8", SCALED_TYPE):
            return static_table(self.checked, self.config, name, self._signed, kind == SCALED_TYPE)
        block = self._hadamard_block(name)
        return dynamic_table(self.checked, self.config, name, kind, block, self._signed, self.input_steps)

    def _names(self) -> Iterator[str]:
        """The names of all tensors of the format beside the float model's."""
        for name in self.config.linears:
            yield from (f"{name}.{part}" for part in PARTS.get(self.linear_type(name), ()))
        for norm in norm_names(self.config):
            yield from (f"{norm}.bias", f"{norm}{NORM_COPY}.weight", f"{norm}{NORM_COPY}.bias")
        yield from fa_names(self.config)
        yield from c8_names(self.config)

    def _check_norm_copies(self) -> None:
        for norm in norm_names(self.config):
            for part in ("weight", "bias"):
                plain, copy = f"{norm}.{part}", f"{norm}{NORM_COPY}.{part}"
                if copy in self.files and not np.array_equal(self.checked.floats(plain), self.checked.floats(copy)):
                    raise CheckpointError(f"{copy} differs from {plain}, which it should repeat. The file is damaged.")

    def _read_schemes(self) -> None:
        fa_quant_type = effective_fa_quant_type(self.raw_config, self.types)
        layers = range(self.config.num_layers)
        declared = [self.types.attention_type(layer) for layer in layers]
        if len(self.types.attention_types) > sum(kind is not None for kind in declared):
            raise CheckpointError(
                f"{self.directory}: the description has quant_type of a layer that the model does not have."
            )
        if self.types.kv_cache_type is not None:
            if fa_quant_type or any(declared):
                raise CheckpointError(f"{self.directory}: the description has both FAQuant and a C8 cache.")
            self.schemes = [read_c8_scheme(self.checked, self.config, layer) for layer in layers]
            self.notes.append(
                "msModelSlim's processor takes the tables of a C8 cache from its last calibration sample only."
            )
        elif C8_TYPE in self.types.tensor_types.values():
            raise CheckpointError(
                f"{self.directory}: the description has tensors of type {C8_TYPE}, but kv_cache_type is not set. Add "
                f'"kv_cache_type": "{C8_TYPE}" to it, if the model is to use an 8-bit cache.'
            )
        elif fa_quant_type or any(declared):
            self.schemes = [self._scheme(layer) for layer in layers]
        if not any(self.schemes) and (fa_quant_type or self.types.kv_cache_type):
            raise CheckpointError(
                f"{self.directory}: the description has fa_quant_type {fa_quant_type!r} and kv_cache_type "
                f"{self.types.kv_cache_type!r}, but no layer has such tensors."
            )

    @property
    def _signed(self) -> bool:
        """Whether the scales of weights may be negative."""
        return False

    def _check_metadata(self) -> None:
        """There is no metadata beyond the description."""

    def _scheme(self, layer: int) -> AttentionScheme | None:
        return read_scheme(self.checked, self.config, layer, self.types.attention_type(layer))

    def _hadamard_block(self, name: str) -> int:
        return 0

    def _check_rotation(self, name: str) -> None:
        if self.linear_type(name) in OWN_TYPES:
            raise CheckpointError(
                f"{name}.weight has type {self.linear_type(name)}, but without metadata.faquant in the description "
                "its arithmetic is unknown."
            )
