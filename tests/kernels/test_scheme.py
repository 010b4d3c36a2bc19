"""AttentionScheme: tables that contradict each other are refused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from faquant.kernels.scheme import AttentionScheme


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"rotation_block": 12}, "power of two"),
        ({"rotation_block": 32}, "divides 16"),
        ({"p_levels": 100}, "levels"),
        ({"p_levels": 127}, "p_float16 and p_levels 127"),
        ({"p_levels": 255, "p_float16": True}, "p_float16 and p_levels 127"),
        ({"p_float16": True}, "p_float16 and p_levels 127"),
        ({"quantized_sum": True}, "static scale of V"),
        ({"k_offset": np.zeros((2, 1))}, "k_offset counts steps"),
        ({"v_offset": np.zeros((2, 1))}, "v_offset counts steps"),
        ({"k_scale": np.ones((4, 1))}, r"k_scale must be \[2, 1\] or \[2, 16\]"),
        ({"q_scale": np.ones(4)}, r"q_scale must be \[4, 1\]"),
        ({"num_heads": 5}, "not a multiple"),
    ],
)
@pytest.mark.parametrize("array", [np.asarray, torch.asarray])
def test_an_impossible_scheme_is_refused(array: Callable[[Any], Any], tables: dict[str, Any], message: str) -> None:
    given = {name: array(table) if isinstance(table, np.ndarray) else table for name, table in tables.items()}
    with pytest.raises(ValueError, match=message):
        AttentionScheme(**{"num_heads": 4, "num_kv_heads": 2, "head_dim": 16, **given})
