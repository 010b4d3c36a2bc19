"""Which layers have a window or RoPE, as config.json says."""

from typing import Any

import pytest

from faquant.checkpoint.model_config import parse_config
from faquant.errors import CheckpointError, FaquantError, UnsupportedError
from oracles.configs import (
    GEMMA3,
    LLAMA,
    MISTRAL,
    OLMO3,
    PHI3,
    QWEN2,
    QWEN3,
    SMOLLM3,
    WINDOWED,
    error_of,
)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({**LLAMA, "sliding_window": 128}, (None,) * 4),
        (MISTRAL, (4096,) * 4),
        ({**MISTRAL, "sliding_window": None}, (None,) * 4),
        ({**MISTRAL, "sliding_window": 128}, (128,) * 4),
        ({**MISTRAL, "sliding_window": 128, "layer_types": ["sliding_attention"] * 4}, (128,) * 4),
        ({**MISTRAL, "sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"] * 2}, (None, 8) * 2),
        ({**MISTRAL, "model_type": "ministral", "architectures": None, "sliding_window": 128}, (128,) * 4),
        ({**SMOLLM3, **WINDOWED}, (None, None, None, 128)),
        ({**OLMO3, "sliding_window": 128}, (128, 128, 128, None)),
        ({**OLMO3, "model_type": "olmo2", "architectures": None, "sliding_window": 128}, (None,) * 4),
        (GEMMA3, (128, 128, 128, 128, 128, None, 128)),
        ({**GEMMA3, "sliding_window_pattern": 2}, (128, None) * 3 + (128,)),
        (PHI3, (None,) * 4),
        ({**PHI3, "sliding_window": 128}, (128,) * 4),
        ({**SMOLLM3, **WINDOWED, "no_rope_layers": [0, 1, 1, 0, 1]}, (128, None, None, 128)),
        ({**SMOLLM3, "sliding_window": 128}, (None,) * 4),
        ({**SMOLLM3, "use_sliding_window": True}, (None,) * 4),
        ({**QWEN2, "sliding_window": 128}, (None,) * 4),
        ({**QWEN2, "sliding_window": 128, "use_sliding_window": False}, (None,) * 4),
        ({**QWEN2, **WINDOWED}, (None,) * 4),
        ({**QWEN2, **WINDOWED, "max_window_layers": 3}, (None, None, None, 128)),
        ({**QWEN2, **WINDOWED, "max_window_layers": 0}, (128,) * 4),
        ({**QWEN2, "use_sliding_window": True, "max_window_layers": 3}, (None, None, None, 4096)),
        ({**QWEN2, "use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}, (None,) * 4),
        (
            {**QWEN3, **WINDOWED, "layer_types": ["sliding_attention", "full_attention"] * 2, "max_window_layers": 0},
            (128, None, 128, None),
        ),
        ({**QWEN3, "sliding_window": 128, "layer_types": ["full_attention"] * 4}, (None,) * 4),
    ],
)
def test_sliding_windows_are_those_of_transformers(raw: dict[str, Any], expected: tuple[int | None, ...]) -> None:
    assert parse_config(raw).sliding_windows == expected


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        ({**MISTRAL, "sliding_window": 0}, CheckpointError),
        ({**MISTRAL, "sliding_window": None, "layer_types": ["sliding_attention"] * 4}, CheckpointError),
        ({**QWEN2, "use_sliding_window": 1}, CheckpointError),
        ({**QWEN2, **WINDOWED, "max_window_layers": -1}, CheckpointError),
        ({**QWEN2, "layer_types": ["sliding_attention"] * 4}, CheckpointError),
        ({**QWEN2, **WINDOWED, "layer_types": ["sliding_attention"] * 3}, UnsupportedError),
        ({**QWEN2, **WINDOWED, "layer_types": [["sliding_attention"]] * 4}, UnsupportedError),
        ({**QWEN2, **WINDOWED, "layer_types": "full"}, UnsupportedError),
        ({**QWEN3, "layer_types": ["linear_attention"] * 4}, UnsupportedError),
        ({**LLAMA, "layer_types": ["chunked_attention"] * 4}, UnsupportedError),
        ({**OLMO3, "sliding_window": None}, CheckpointError),
        ({**PHI3, "sliding_window": 24, "layer_types": ["full_attention"] * 4}, UnsupportedError),
    ],
)
def test_impossible_windows_are_refused(raw: dict[str, Any], kind: type[FaquantError]) -> None:
    assert "window" in error_of(raw, kind) or "layer_types" in error_of(raw, kind)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, [0, 0, 0, 1]),
        ({"no_rope_layer_interval": 2}, [0, 1, 0, 1]),
        ({"no_rope_layers": [1, 0, 1, 1, 0]}, [0, 1, 0, 0]),
        ({"no_rope_layers": [1, 1, 1, 1]}, [0, 0, 0, 0]),
    ],
)
def test_layers_without_rope(keys: dict[str, Any], expected: list[int]) -> None:
    config = parse_config({**SMOLLM3, **keys})
    assert [config.rope_kind(layer) for layer in range(4)] == expected
    assert [rope.rope_type for rope in config.ropes] == ["default", "none"][: 1 + max(expected)]


@pytest.mark.parametrize("value", [4, [1, 1], [1, 1, 1, True], [1, 1, 1, "0"]])
def test_layers_without_rope_are_listed(value: Any) -> None:
    assert "no_rope_layers must be a list" in error_of({**SMOLLM3, "no_rope_layers": value})
