"""What vLLM looks up by name: the quantization method `faquant`, and the loader of its models."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vllm.config import ModelConfig, VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.model_executor.model_loader import DefaultModelLoader, register_model_loader

from ..checkpoint.files import DESCRIPTION_NAMES
from ..errors import UsageError
from ..formats import open_checkpoint
from ..formats.faquant.metadata import METADATA_KEY as METHOD


@register_quantization_config(METHOD)
class FaquantConfig(QuantizationConfig):
    """Only says that faquant runs the model: how it is quantized is read from the checkpoint."""

    def get_name(self) -> str:
        return METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.float32, torch.bfloat16, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        return 80

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "FaquantConfig":
        return cls()

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: dict[str, Any], user_quant: str | None, hf_config: Any = None
    ) -> str | None:
        """`--quantization faquant` also reads what other tools have quantized."""
        return METHOD if user_quant == METHOD else None

    def maybe_update_config(self, model_name: str, hf_config: Any = None, revision: str | None = None) -> None:
        """Refuse a damaged or unsupported checkpoint before any process is started."""
        if Path(model_name).is_dir():
            open_checkpoint(Path(model_name))

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        raise UsageError(
            "faquant loads its models itself. Leave --load-format at auto, and do not let vLLM build the model."
        )


class Loader(DefaultModelLoader):
    """vLLM's default loader, which leaves the models of quantization `faquant` to this plugin."""

    def load_model(self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = "") -> nn.Module:
        """The model; `model_config` may also be that of a draft model.

        Raises:
            UsageError: vLLM would read a checkpoint of msModelSlim's format as a float one.
        """
        if vllm_config.quant_config is None:
            _check_description(Path(model_config.model))
        is_served = model_config is vllm_config.model_config
        if not is_served or not isinstance(vllm_config.quant_config, FaquantConfig):
            return super().load_model(vllm_config, model_config, prefix)
        from .model import FaquantModel

        with set_current_vllm_config(vllm_config):
            return FaquantModel(vllm_config=vllm_config, prefix=prefix).eval()


def _check_description(directory: Path) -> None:
    """config.json of these checkpoints does not say that they are quantized."""
    for name in DESCRIPTION_NAMES:
        if (directory / name).is_file():
            raise UsageError(f"{directory} is quantized, as {name} in it says. Pass --quantization faquant.")


def register_loader() -> None:
    """Put Loader in the place of vLLM's default loader. vLLM warns about that in each process; for people who serve
    other models, nothing has changed."""
    warnings = logging.getLogger("vllm.model_executor.model_loader")
    level = warnings.level
    warnings.setLevel(logging.ERROR)
    try:
        register_model_loader("auto")(Loader)
    finally:
        warnings.setLevel(level)


register_loader()
