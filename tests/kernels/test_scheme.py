"""AttentionScheme: tables that contradict each other are refused."""

from typing import Any

import pytest
import torch

from faquant.kernels.scheme import AttentionScheme


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"rotation_block": 12}, "power of two"),
        ({"rotation_block": 32}, "divides 16"),
        ({"p_levels": 100}, "levels"),
        ({"quantized_sum": True}, "V's scale per token"),
        ({"k_offset": torch.zeros(2, 1)}, "k_offset counts steps"),
        ({"v_offset": torch.zeros(2, 1)}, "v_offset counts steps"),
        ({"k_scale": torch.ones(4, 1)}, r"k_scale must be \[2, 1\] or \[2, 16\]"),
        ({"q_scale": torch.ones(4)}, r"q_scale must be \[4, 1\]"),
        ({"num_heads": 5}, "no multiple"),
    ],
)
def test_an_impossible_scheme_is_refused(tables: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionScheme(**{"num_heads": 4, "num_kv_heads": 2, "head_dim": 16, **tables})
