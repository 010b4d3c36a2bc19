"""The `mindie` semantics against an independent implementation of MindIE's decode formula."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from faquant.kernels import quantizers, reference
from faquant.kernels.pages import Int8Pages, Spans
from faquant.kernels.scheme import AttentionScheme

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
LAYERS = range(3)
TOLERANCE = 1e-6
"""The float32 noise of two orders of summation; the outputs reach 0.89. One step of P would be some 1e-4."""


def sample(layer: int) -> tuple[AttentionScheme, dict[str, torch.Tensor]]:
    """The layer's scheme and golden tensors."""
    prefix = f"L{layer}."
    golden = {
        name.removeprefix(prefix): value
        for name, value in load_file(GOLDEN / "decode_reference_fp32.safetensors").items()
        if name.startswith(prefix)
    }
    weights = load_file(GOLDEN / "w8a8_fa_fp32_ascendV1" / "quant_model_weight_w8a8.safetensors")
    q_scale, k_scale, v_scale = (weights[f"model.layers.{layer}.self_attn.fa_{part}.scale"] for part in "qkv")
    scales = {"q_scale": q_scale, "k_scale": k_scale, "v_scale": v_scale}
    return AttentionScheme(8, 2, 16, **scales, p_levels=127, p_float16=True), golden


def decode(layer: int, pages_of: int = 128) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The last query of the golden sample through append and attend, and the layer's golden tensors."""
    scheme, golden = sample(layer)
    tokens = len(golden["k"])
    pages = Int8Pages(scheme, num_pages=-(-tokens // pages_of), page_size=pages_of)
    pages.append(golden["k"], golden["v"], torch.arange(tokens), torch.arange(tokens))
    return pages.attend(golden["q"][None], Spans.of([(1, tokens - 1, torch.arange(pages.num_pages))]))[0], golden


def decode_by_reference(layer: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The same without pages: the tile size of the reference can be set, that of the kernels cannot."""
    scheme, golden = sample(layer)
    (k8, _), (v8, _) = quantizers.quantize_k(golden["k"], scheme), quantizers.quantize_v(golden["v"], scheme)
    return reference.attend(golden["q"][None], k8, v8, None, None, scheme, len(k8) - 1)[0], golden


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("page_size", [128, 256])
def test_decode_in_one_tile(layer: int, page_size: int) -> None:
    out, golden = decode(layer, page_size)
    torch.testing.assert_close(out, golden["fa_out_online"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("layer", LAYERS)
def test_decode_in_tiles_of_16(layer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "TILE", 16)
    out, golden = decode_by_reference(layer)
    torch.testing.assert_close(out, golden["fa_out_online_blk16"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("layer", LAYERS)
def test_tiles_of_16_keep_their_own_scale_of_p_across_splits(layer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "TILE", 16)
    monkeypatch.setattr(reference, "SPLIT", 32)
    out, golden = decode_by_reference(layer)
    torch.testing.assert_close(out, golden["fa_out_online_blk16"], rtol=0, atol=TOLERANCE)


def test_the_sample_tells_the_details() -> None:
    """Layer 0 has keys at step -128; without float16's rounding of P, or with -127, the outputs differ visibly."""
    out, golden = decode(0)
    scale = load_file(GOLDEN / "w8a8_fa_fp32_ascendV1" / "quant_model_weight_w8a8.safetensors")
    steps = golden["k"] / scale["model.layers.0.self_attn.fa_k.scale"]
    assert steps.min() < -127.5
    assert (out - golden["fa_out_online_blk16"]).abs().max() > 100 * TOLERANCE
    assert (out - golden["float_out"]).abs().max() > 100 * TOLERANCE
