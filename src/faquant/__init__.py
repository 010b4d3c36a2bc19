"""8-bit attention for LLaMA-family models, from calibration to serving."""

# Not from typing: until cli.start has provided for an interrupt, it would end in a traceback, so that comes soon.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .api import evaluate, quantize
    from .engine.async_engine import AsyncEngine
    from .engine.engine import Engine
    from .engine.engine_config import EngineConfig
    from .engine.llm import LLM
    from .engine.request import Completion
    from .engine.sampling_params import SamplingParams
    from .engine.structured_output import StructuredOutput
    from .errors import FaquantError
    from .evaluation.report import Report
    from .recipe import Recipe

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
    "evaluate",
    "quantize",
]

_HOMES = {
    "LLM": "engine.llm",
    "AsyncEngine": "engine.async_engine",
    "Completion": "engine.request",
    "Engine": "engine.engine",
    "EngineConfig": "engine.engine_config",
    "SamplingParams": "engine.sampling_params",
    "StructuredOutput": "engine.structured_output",
    "FaquantError": "errors",
    "Recipe": "recipe",
    "Report": "evaluation.report",
    "evaluate": "api",
    "quantize": "api",
}


def __getattr__(name: str) -> "Any":
    # Imported when first used: torch takes a second, and `import faquant.errors` does not need it.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
