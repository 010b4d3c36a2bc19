"""The results of an evaluation, and their JSON."""

import json
import os
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..kernels import isa as cpu
from ..model.inspection import Inspection
from .divergence import Divergence
from .html import render
from .needle import Needle
from .noise import LayerNoise
from .outliers import Outlier
from .positions import Long, Offsets
from .tasks.compare import TaskResult

NAME = "faquant_report"


@dataclass(frozen=True)
class Report:
    """The loss by quantization. Divergences are by text and variant: `attention` and `linears` quantized alone, `both`.

    Parts that were not measured are None or empty. docs/accuracy.md describes each part.
    """

    inspection: Inspection
    source: Inspection
    model_fingerprint: str
    window: int
    texts: dict[str, dict[str, Divergence]]
    offsets: Offsets | None = None
    long: Long | None = None
    layers: list[LayerNoise] = field(default_factory=list)
    lm_head: float | None = None
    outliers: list[Outlier] = field(default_factory=list)
    needle: Needle | None = None
    search: dict[str, Any] | None = None
    tasks: list[TaskResult] = field(default_factory=list)

    @property
    def recipe(self) -> str:
        """The recipe's name, or the format of a checkpoint that does not name its recipe."""
        if self.inspection.metadata:
            return self.inspection.metadata.name
        return "in MindIE's format" if self.inspection.format == "msmodelslim" else f"of {self.inspection.format}"

    @property
    def subject(self) -> str:
        """What was measured, for a title."""
        made = self.inspection.metadata
        return f"{'recipe' if made and made.recipe else 'checkpoint'} {self.recipe}"

    @property
    def saturation(self) -> dict[str, float]:
        """For each tensor, the largest share of values beyond their calibrated scales in any layer."""
        names = sorted({name for layer in self.layers for name in layer.clipped})
        return {name: max(layer.clipped.get(name, 0.0) for layer in self.layers) for name in names}

    def to_json(self) -> dict[str, Any]:
        """As JSON values, as evaluation.html.render takes them; KL in nats, noise in dB, shares as they are."""
        seen, config, made = self.inspection, self.inspection.config, self.inspection.metadata
        return {
            "format": 1,
            "program": {
                "version": metadata.version("faquant"),
                "kernel": cpu.selected_isa(),
                "torch": metadata.version("torch"),
            },
            "model": {
                "directory": seen.directory,
                "against": self.source.directory,
                "type": config.model_type,
                "layers": config.num_layers,
                "heads": [config.num_heads, config.num_kv_heads, config.head_dim],
                "max_position": seen.max_position,
                "fingerprint": self.model_fingerprint,
                "weight_bytes": seen.weight_bytes,
                "source_weight_bytes": self.source.weight_bytes,
            },
            "recipe": made.recipe.model_dump(mode="json") if made and made.recipe else {"name": self.recipe},
            "calibration": made.calibration if made else None,
            "cache": {
                "bytes_per_token": seen.kv_bytes_per_token,
                "bytes_per_token_bf16": seen.kv_bytes_per_token_bf16,
                "schemes": seen.kv_schemes,
            },
            "window": self.window,
            "texts": {
                text: {
                    "tokens": max(result.tokens for result in results.values()),
                    "windows": max(result.windows for result in results.values()),
                    "variants": {name: result.to_json() for name, result in results.items()},
                }
                for text, results in self.texts.items()
            },
            "offsets": self.offsets.to_json() if self.offsets else None,
            "long": self.long.to_json() if self.long else None,
            "layers": [layer.to_json() for layer in self.layers],
            "lm_head": self.lm_head,
            "outliers": [outlier.to_json() for outlier in self.outliers],
            "needle": self.needle.to_json() if self.needle else None,
            "search": self.search,
            "tasks": [result.to_json() for result in self.tasks],
        }

    def write(self, directory: Path) -> Path:
        """Write faquant_report.json and .html into `directory`, each atomically, and return the page's path.

        Raises:
            OutputError: they cannot be written.
        """
        values = self.to_json()
        _write(directory / f"{NAME}.json", json.dumps(values, indent=1, ensure_ascii=False) + "\n")
        _write(directory / f"{NAME}.html", render(values))
        return directory / f"{NAME}.html"


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        for left in path.parent.glob(f".{path.name}.partial-*"):  # left by a killed run
            left.unlink(missing_ok=True)
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}.") from None
