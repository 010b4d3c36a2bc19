"""Comparison with msmodelslim: the same random checkpoints, quantized by msmodelslim and by faquant, must be equal bit
for bit.

Both compute on this machine, with the same operations in the same order, so nothing may differ.
"""

import json
import os
import random
import shutil
import subprocess
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from faquant.evaluation.divergence import compare
from faquant.kernels.torch_backend import TorchBackend
from faquant.model.load import load
from faquant.quantization.tensors import DTYPES
from oracles.mindie import calibrate

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]

SCRIPT = Path(__file__).with_name("run_msmodelslim.py")
PIPELINE = Path(__file__).parents[2] / "benchmarks" / "run_msmodelslim_v1.py"
VARIABLE = "FAQUANT_MSMODELSLIM_PYTHON"


@dataclass(frozen=True)
class Case:
    """A tiny Llama: its shape, its dtype, and which linears stay float."""

    name: str
    dtype: str
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    bias: bool = False
    rope: dict[str, Any] | None = None
    float_layers: tuple[str, ...] = ("*.mlp.down_proj", "lm_head")


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES = [
    Case("bfloat16", "bfloat16", heads=8),
    Case("bfloat16-all-quantized-llama3", "bfloat16", rope=LLAMA3, float_layers=()),
    Case("float16-multi-query", "float16", kv_heads=1),
    Case("float16-bias", "float16", bias=True, float_layers=("*.0.self_attn.o_proj", "*.1.mlp.*", "lm_head")),
    Case("float32-multi-head", "float32", kv_heads=4, head_dim=32),
    Case("float32-bias-some-float", "float32", bias=True, float_layers=("*.k_proj", "*.1.mlp.gate_proj", "lm_head")),
    Case("bfloat16-bias", "bfloat16", bias=True, float_layers=("model.layers.1.*", "lm_head")),
]
HIDDEN, INNER, LAYERS, VOCABULARY = 64, 96, 2, 128


@pytest.fixture(scope="module")
def tool_python() -> str:
    python = os.environ.get(VARIABLE)
    if not python:
        pytest.fail(f"{VARIABLE} must name a Python with msmodelslim (make test-interop sets it).")
    return python


def make_checkpoint(directory: Path, case: Case) -> list[str]:
    """Write a random model, with an outlier channel in K and one in V; return the names of its linears."""
    generator = torch.Generator().manual_seed(sum(case.name.encode()))
    dtype = DTYPES[case.dtype]
    q, kv = case.heads * case.head_dim, case.kv_heads * case.head_dim
    shapes = {"lm_head": (VOCABULARY, HIDDEN)}
    tensors: dict[str, Tensor] = {}

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    tensors["model.embed_tokens.weight"] = normal(VOCABULARY, HIDDEN)
    tensors["model.norm.weight"] = 1 + 0.1 * normal(HIDDEN)
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = 1 + 0.1 * normal(HIDDEN)
        shapes |= {
            f"{prefix}self_attn.q_proj": (q, HIDDEN),
            f"{prefix}self_attn.k_proj": (kv, HIDDEN),
            f"{prefix}self_attn.v_proj": (kv, HIDDEN),
            f"{prefix}self_attn.o_proj": (HIDDEN, q),
            f"{prefix}mlp.gate_proj": (INNER, HIDDEN),
            f"{prefix}mlp.up_proj": (INNER, HIDDEN),
            f"{prefix}mlp.down_proj": (HIDDEN, INNER),
        }
    for name, (n, k) in shapes.items():
        tensors[f"{name}.weight"] = normal(n, k) / k**0.5
        if case.bias and name != "lm_head":
            tensors[f"{name}.bias"] = 0.5 * normal(n)
        if name.endswith(("k_proj", "v_proj")):
            tensors[f"{name}.weight"][5] *= 12
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": case.dtype,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": case.heads,
        "num_key_value_heads": case.kv_heads,
        "head_dim": case.head_dim,
        "attention_bias": case.bias,
        "mlp_bias": case.bias,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_parameters": case.rope or {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": False,
        "vocab_size": VOCABULARY,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, directory / "model.safetensors")
    return list(shapes)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_same_as_the_tool(case: Case, tool_python: str, tmp_path: Path) -> None:
    def is_float(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in case.float_layers)

    linears = make_checkpoint(tmp_path / "float", case)
    chooser = random.Random(case.name)
    prompts = [[chooser.randrange(VOCABULARY) for _ in range(length)] for length in (1, 130, 7, 64, 33)]
    calibration = tmp_path / "calibration.json"
    calibration.write_text(json.dumps(prompts), encoding="utf-8")
    arguments = [tmp_path / "float", tmp_path / "tool", "--calibration", calibration, "--float-names"]
    command = [tool_python, SCRIPT, *arguments, *filter(is_float, linears)]
    # msmodelslim leaves a features.npy in the working directory, and refuses one that others can read.
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    if done.returncode:
        pytest.fail(f"msmodelslim failed:\n{done.stderr[-3000:]}")
    wanted = load_file(tmp_path / "tool" / "quant_model_weight_w8a8.safetensors")
    described = json.loads((tmp_path / "tool" / "quant_model_description.json").read_text(encoding="utf-8"))

    ours = calibrate(tmp_path / "float", prompts, [name for name in linears if is_float(name)])

    head = ["version", "model_quant_type", "fa_quant_type"]
    assert list(described) == head + [name for name, _, _ in ours]
    assert {name: described[name] for name, _, _ in ours} == {name: kind for name, kind, _ in ours}
    assert sorted(wanted) == sorted(name for name, _, _ in ours)
    different = []
    for name, _, tensor in ours:
        assert (tensor.dtype, tensor.shape) == (wanted[name].dtype, wanted[name].shape), name
        if not torch.equal(tensor, wanted[name]):
            different.append(name)
    assert not different


@pytest.mark.parametrize(
    "command", [(SCRIPT, "--anti-method", "m4"), (PIPELINE, "--quarot")], ids=["m4", "newer pipeline, quarot"]
)
def test_its_better_checkpoints_load(command: tuple[str | Path, ...], tool_python: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "float", Case("suppressed", "float32"))
    chooser = random.Random(0)
    prompts = [[chooser.randrange(VOCABULARY) for _ in range(length)] for length in (130, 7, 64)]
    calibration = tmp_path / "calibration.json"
    calibration.write_text(json.dumps(prompts), encoding="utf-8")
    script, *options = command
    arguments = [
        tmp_path / "float",
        tmp_path / "tool",
        "--calibration",
        calibration,
        "--float-out",
        tmp_path / "folded",
    ]
    done = subprocess.run(
        [tool_python, script, *arguments, *options, "--float-names", "lm_head"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for directory in (tmp_path / "tool", tmp_path / "folded"):
        if not (directory / "config.json").exists():
            shutil.copy(tmp_path / "float" / "config.json", directory)

    source = load(tmp_path / "float", backend=TorchBackend())
    models = {"tool": load(tmp_path / "tool"), "folded": load(tmp_path / "folded")}
    found = compare(source, models, prompts[0], window=len(prompts[0]))
    assert found["folded"].kl_mean < 1e-6
    assert found["tool"].kl_mean < 0.02
    assert found["tool"].top1 > 0.8
