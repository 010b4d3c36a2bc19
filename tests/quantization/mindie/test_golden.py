"""The whole calibration against two checkpoints of msmodelslim, tensor for tensor.

Float sums differ in their last bits between CPUs, so results of forward passes may differ, too.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from faquant.errors import CheckpointError
from faquant.quantization.mindie.attention import eager_attention
from oracles.mindie import calibrate

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
Both = tuple[dict[str, Tensor], dict[str, Tensor], list[str], list[str]]
"""faquant's tensors, msmodelslim's, faquant's lines of the description, msmodelslim's."""
PROMPTS = json.loads((GOLDEN / "calibration_token_ids.json").read_text(encoding="utf-8"))


FLOAT = ("lm_head", "*.down_proj")
FLOAT32 = GOLDEN / "float_float32"


def changed(directory: Path, edit: Callable[[dict[str, Tensor]], None], **config: object) -> Path:
    """A copy of the float32 source with other tensors and another config.json."""
    directory.mkdir()
    tensors = load_file(FLOAT32 / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((FLOAT32 / "config.json").read_text(encoding="utf-8"))
    (directory / "config.json").write_text(json.dumps(raw | config), encoding="utf-8")
    return directory


def steps_apart(a: Tensor, b: Tensor) -> Tensor:
    """Distance between positive a and b in steps of their 16-bit dtype."""
    return (a.view(torch.int16).int() - b.view(torch.int16).int()).abs()


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def both(request: pytest.FixtureRequest) -> Both:
    directory = GOLDEN / f"w8a8_fa_{'fp32' if request.param == 'float32' else 'bf16'}_ascendV1"
    ours = calibrate(GOLDEN / f"float_{request.param}", PROMPTS, FLOAT)
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
    name = "model.layers.2.self_attn.q_proj.input_scale"
    forth, back = (
        {n: t for n, _, t in calibrate(FLOAT32, prompts, FLOAT)}[name] for prompts in (PROMPTS, PROMPTS[::-1])
    )
    assert not torch.equal(forth, back)
    torch.testing.assert_close(forth, back, rtol=0.05, atol=0)


def test_a_tied_head_is_not_stored_twice(tmp_path: Path) -> None:
    tied = changed(tmp_path / "tied", lambda tensors: tensors.pop("lm_head.weight"), tie_word_embeddings=True)
    assert "lm_head.weight" not in {name for name, _, _ in calibrate(tied, PROMPTS[:1], FLOAT)}


def test_an_overflow_is_refused_with_its_place(tmp_path: Path) -> None:
    def enlarge(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.1.post_attention_layernorm.weight"][3] = 3e38

    with pytest.raises(CheckpointError, match=r"model\.layers\.1: .*not finite"):
        calibrate(changed(tmp_path / "large", enlarge), PROMPTS, FLOAT)


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
