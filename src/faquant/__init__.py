"""8-bit attention for LLaMA-family models, from calibration to serving."""

# Not from typing: until cli.start has provided for an interrupt, it would end in a traceback, so that comes soon.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .api import calibrate, evaluate, quantize
    from .engine.async_engine import AsyncEngine
    from .engine.engine import Engine
    from .engine.engine_config import EngineConfig
    from .engine.llm import LLM
    from .engine.request import Completion
    from .errors import FaquantError
    from .evaluation.report import Report
    from .recipe import Recipe
    from .sampling.params import SamplingParams
    from .structured.structured_output import StructuredOutput

__all__ = [
    "LLM",
    "AsyncEngine",
    "Completion",
    "Engine",
    "EngineConfig",
    "FaquantError",
    "Recipe",
    "Report",
    "SamplingParams",
    "StructuredOutput",
    "calibrate",
    "evaluate",
    "quantize",
]

_HOMES = {
    "LLM": "engine.llm",
    "AsyncEngine": "engine.async_engine",
    "Completion": "engine.request",
    "Engine": "engine.engine",
    "EngineConfig": "engine.engine_config",
    "SamplingParams": "sampling.params",
    "StructuredOutput": "structured.structured_output",
    "FaquantError": "errors",
    "Recipe": "recipe",
    "Report": "evaluation.report",
    "calibrate": "api",
    "evaluate": "api",
    "quantize": "api",
}


def __getattr__(name: str) -> "Any":
    # Imported when first used: `import faquant.errors` needs none of it, and only quantizing and evaluating need torch.
    if name in _HOMES:
        from importlib import import_module

        try:
            return getattr(import_module(f".{_HOMES[name]}", __name__), name)
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise ImportError(f"faquant.{name} needs torch: pip install 'faquant[quantize]'") from None
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
