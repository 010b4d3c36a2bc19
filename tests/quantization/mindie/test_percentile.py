"""Static scales of q, k, v: compared with msmodelslim's for the same q, k, v, and with a plain search."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from faquant.errors import CheckpointError
from faquant.quantization.mindie.percentile import K_RATIO, Q_RATIO, V_RATIO, HeadObserver, shortest_window

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
RATIOS = {"q": Q_RATIO, "k": K_RATIO, "v": V_RATIO}


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_scales_are_the_tool_s(kind: str) -> None:
    seen = load_file(GOLDEN / f"w8a8_fa_{kind}_ascendV1.qkv.safetensors")
    wanted = load_file(GOLDEN / f"w8a8_fa_{kind}_ascendV1" / "quant_model_weight_w8a8.safetensors")
    for layer in range(3):
        for name, ratio in RATIOS.items():
            observer = HeadObserver(ratio)
            for sample in range(4):
                observer.update(seen[f"sample{sample}.layer{layer}.{name}"][0].transpose(0, 1))
            scale = wanted[f"model.layers.{layer}.self_attn.fa_{name}.scale"]
            assert observer.scale().dtype == scale.dtype
            assert torch.equal(observer.scale(), scale), (layer, name)


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.integers(-20, 20), min_size=1, max_size=60),
    ratio=st.sampled_from([0.3, 0.5, 0.9, 0.9999, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_window_is_the_shortest_and_the_lowest_of_these(values: list[int], ratio: float, dtype: torch.dtype) -> None:
    ordered = sorted(values)
    held = max(int(ratio * len(values)), 1)
    spans = [(ordered[i + held - 1] - ordered[i], i) for i in range(len(values) - held + 1)]
    low, high = shortest_window(torch.tensor([values, values[::-1]], dtype=dtype), ratio)
    start = min(spans)[1]
    assert low.tolist() == [[ordered[start]]] * 2
    assert high.tolist() == [[ordered[start + held - 1]]] * 2


def test_an_outlier_beyond_the_ratio_is_cut() -> None:
    states = torch.linspace(-1, 1, 10_000).reshape(1000, 1, 10).clone()
    states[17, 0, 3] = 50.0
    cut, kept = HeadObserver(K_RATIO), HeadObserver(V_RATIO)
    cut.update(states)
    kept.update(states)
    assert cut.scale().item() == pytest.approx(1 / 127, rel=1e-3)
    assert kept.scale().item() == pytest.approx(50 / 127)


def test_ranges_of_prompts_are_united() -> None:
    observer = HeadObserver(V_RATIO)
    observer.update(torch.tensor([[[1.0, 2.0], [-3.0, 1.0]]]))
    observer.update(torch.tensor([[[-4.0, 0.0], [2.0, 2.0]], [[0.5, 0.0], [0.0, 2.5]]]))
    assert torch.equal(observer.scale(), torch.tensor([[4.0], [3.0]]) / 127)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(CheckpointError, match="not finite"):
        HeadObserver(Q_RATIO).update(torch.tensor([[[1.0, bad]]]))
    with pytest.raises(CheckpointError, match="no calibration data"):
        HeadObserver(Q_RATIO).scale()
