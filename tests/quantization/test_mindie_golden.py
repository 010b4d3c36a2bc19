"""The whole calibration against two checkpoints of msmodelslim, tensor for tensor.

Float sums differ in their last bits from one CPU to another, so what depends on a forward pass may do so too.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from faquant.errors import CheckpointError, UsageError
from faquant.model.decoder import Decoder
from faquant.model.linear import FloatLinear
from faquant.model.load import load_float
from faquant.model.opening import DTYPES
from faquant.quantization.mindie import calibrate_mindie, eager_attention

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
Both = tuple[dict[str, Tensor], dict[str, Tensor], list[str], list[str]]
"""Our tensors, the tool's, our lines of the description, the tool's."""
PROMPTS = json.loads((GOLDEN / "calibration_token_ids.json").read_text(encoding="utf-8"))


def is_float(name: str) -> bool:
    return name == "lm_head" or name.endswith("down_proj")


def decoder_of(dtype: str) -> Decoder:
    return load_float(GOLDEN / f"float_{dtype}", DTYPES[dtype]).decoder


def steps_apart(a: Tensor, b: Tensor) -> Tensor:
    """How many floating-point numbers lie between positive a and b of one 16-bit dtype."""
    return (a.view(torch.int16).int() - b.view(torch.int16).int()).abs()


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def both(request: pytest.FixtureRequest) -> Both:
    directory = GOLDEN / f"w8a8_fa_{'fp32' if request.param == 'float32' else 'bf16'}_ascendV1"
    ours = list(calibrate_mindie(decoder_of(request.param), PROMPTS, is_float))
    described = json.loads((directory / "quant_model_description.json").read_text(encoding="utf-8"))
    wanted = load_file(directory / "quant_model_weight_w8a8.safetensors")
    lines = [f"{name}: {kind}" for name, kind, _ in ours]
    tool_lines = [f"{name}: {kind}" for name, kind in described.items() if "." in name]
    return {name: tensor for name, _, tensor in ours}, wanted, lines, tool_lines


def test_names_types_and_order_are_the_tool_s(both: Both) -> None:
    ours, wanted, lines, tool_lines = both
    assert lines == tool_lines
    assert len(ours) == len(lines)
    assert ours.keys() == wanted.keys()
    assert {name: (t.dtype, t.shape) for name, t in ours.items()} == {
        name: (t.dtype, t.shape) for name, t in wanted.items()
    }


def test_tensors_are_the_tool_s(both: Both) -> None:
    ours, wanted, _, _ = both
    for name, tensor in wanted.items():
        module, _, part = name.rpartition(".")
        if part in ("input_scale", "scale"):
            if tensor.dtype == torch.float32:
                torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=0)
            else:
                assert steps_apart(ours[name], tensor).max() <= 1, name
        elif part == "deq_scale":
            if torch.equal(ours[f"{module}.input_scale"], wanted[f"{module}.input_scale"]):
                assert torch.equal(ours[name], tensor), name
        elif part == "quant_bias":
            if torch.equal(ours[f"{module}.input_offset"], wanted[f"{module}.input_offset"]):
                assert torch.equal(ours[name], tensor), name
        elif part == "input_offset":
            # In 16 bits a range's end that moved by one step may move it.
            assert (ours[name] - tensor).abs() <= (0 if tensor.dtype == torch.float32 else 1), name
        else:
            assert torch.equal(ours[name], tensor), name


def test_order_of_prompts_matters() -> None:
    """Inputs are rounded with the range of the prompts so far, so later layers see the order."""
    decoder = decoder_of("float32")
    name = "model.layers.2.self_attn.q_proj.input_scale"
    forth, back = (
        {n: t for n, _, t in calibrate_mindie(decoder, prompts, is_float)}[name] for prompts in (PROMPTS, PROMPTS[::-1])
    )
    assert not torch.equal(forth, back)
    torch.testing.assert_close(forth, back, rtol=0.05, atol=0)


def test_the_float_model_is_left_as_it_was() -> None:
    decoder = decoder_of("float32")
    before = [linear.weight.clone() for linear in (decoder.layers[0].q_proj, decoder.lm_head)]
    for _ in calibrate_mindie(decoder, PROMPTS[:1], lambda name: False):
        pass
    assert isinstance(decoder.layers[0].q_proj, FloatLinear)
    assert all(
        torch.equal(linear.weight, old)
        for linear, old in zip((decoder.layers[0].q_proj, decoder.lm_head), before, strict=True)
    )


def test_a_tied_head_is_not_stored_twice() -> None:
    decoder = decoder_of("float32")
    decoder = replace(
        decoder, lm_head=FloatLinear(decoder.embedding), config=replace(decoder.config, tie_word_embeddings=True)
    )
    assert "lm_head.weight" not in {name for name, _, _ in calibrate_mindie(decoder, PROMPTS[:1], is_float)}


@pytest.mark.parametrize("prompts", [[], [[1, 2], []]])
def test_empty_prompts_are_refused(prompts: list[list[int]]) -> None:
    with pytest.raises(UsageError, match="prompt"):
        list(calibrate_mindie(decoder_of("float32"), prompts, is_float))


def test_an_overflow_is_refused_with_its_place() -> None:
    decoder = decoder_of("float32")
    decoder.layers[1].post_attention_layernorm.weight[3] = float("inf")
    with pytest.raises(CheckpointError, match=r"model\.layers\.1: .*not finite"):
        list(calibrate_mindie(decoder, PROMPTS, is_float))


def test_a_quantized_model_is_refused() -> None:
    decoder = decoder_of("float32")
    other: Callable[[Tensor], Tensor] = torch.abs
    with pytest.raises(TypeError, match="float model"):
        list(calibrate_mindie(replace(decoder, lm_head=other), PROMPTS, is_float))


@pytest.mark.parametrize("window", [None, 1, 5])
def test_attention_is_causal_and_windowed(window: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(23, heads, 8, generator=generator, dtype=torch.float64) for heads in (6, 2, 2))
    distance = torch.arange(23)[:, None] - torch.arange(23)
    seen = (distance >= 0) & (distance < (window or 23))
    wanted = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k.transpose(0, 1)[None],
        v.transpose(0, 1)[None],
        attn_mask=seen,
        enable_gqa=True,
    )[0].transpose(0, 1)
    # The probabilities are computed in float32, as transformers does it.
    torch.testing.assert_close(eager_attention(q, k, v, window), wanted, rtol=1e-5, atol=1e-5)
