#!/usr/bin/env bash
# msmodelslim 26.1.0 (torch 2.13.0 on the CPU, transformers 5.23.0), static W8A8 of a bfloat16 model in the pipeline of
# processors: the written deq_scale is a float32 tensor, but it is not input_scale x weight_scale. Both factors are
# bfloat16, and so is their product, rounded to 8 significant bits before it becomes float32. Each output channel of the
# checkpoint is up to 0.4 % too large or too small against the model that the tool itself fake-quantized, made float32
# so that it computes without roundings of its own. A float32 model has no such difference.
#
# Met when logits computed from the files were compared with those of the tool's model: the scale of a weight must be
# taken as deq_scale / input_scale, which is not the scale that its integers were rounded with.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet msmodelslim==26.1.0 transformers==5.23.0
cd "$folder"
"$folder/venv/bin/python" - 2> log <<'PYTHON' || { tail -n 1 log >&2; exit 1; }
import sys
from pathlib import Path

import torch
from msmodelslim.core.const import DeviceType
from msmodelslim.core.context import ContextFactory, ContextManager
from msmodelslim.core.quant_service.modelslim_v1.save import AscendV1Config
from msmodelslim.core.runner.pipeline_parallel_runner import PPRunner
from msmodelslim.model.qwen3.model_adapter import Qwen3ModelAdapter
from msmodelslim.processor import LinearProcessorConfig
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM


class Adapter(Qwen3ModelAdapter):
    """Keeps the model, which the tool fake-quantizes in place."""

    def init_model(self, device=DeviceType.CPU):
        self.model = super().init_model(device)
        return self.model


words = [f"w{i}" for i in range(128)]
words_to_ids = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
words_to_ids.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words_to_ids, unk_token="w0", pad_token="w1")
config = Qwen3Config(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=128,
    max_position_embeddings=64,
    initializer_range=0.2,
)
act = {"dtype": "int8", "scope": "per_tensor", "symmetric": False, "method": "minmax"}
weight = {"dtype": "int8", "scope": "per_channel", "symmetric": True, "method": "minmax"}


def differences(name):
    """How far deq_scale is from the product, and the outputs of a linear by the files from those of the tool."""
    torch.manual_seed(0)
    source, out = Path(name), Path(f"{name}-int8")
    out.mkdir()
    Qwen3ForCausalLM(config).to(getattr(torch, name)).save_pretrained(source)
    tokenizer.save_pretrained(source)
    adapter = Adapter("Qwen3-8B", source)
    runner = PPRunner(adapter=adapter)
    runner.add_processor(LinearProcessorConfig(qconfig={"act": act, "weight": weight}, include=["*"], exclude=[]))
    runner.add_processor(AscendV1Config(save_directory=str(out), part_file_size=0))
    with ContextManager(ContextFactory().create()):
        runner.run(calib_data=[" ".join(words[i::2]) for i in (0, 1)], device=DeviceType.CPU)
    tensors = load_file(out / "quant_model_weights.safetensors")
    linear = adapter.model.model.layers[0].mlp.down_proj.float()
    w, input_scale, offset, bias, deq_scale = (
        tensors[f"model.layers.0.mlp.down_proj.{kind}"]
        for kind in ("weight", "input_scale", "input_offset", "quant_bias", "deq_scale")
    )
    if deq_scale.dtype == torch.int64:  # how the tool writes the bits of float32 for other models than bfloat16
        deq_scale = deq_scale.to(torch.int32).view(torch.float32)
    x = torch.randn(64, 128) * 2
    integers = (x / input_scale).round().add(offset).clamp(-128, 127) @ w.float().T + bias
    with torch.no_grad():
        tool = linear(x)
    scales = (deq_scale / (input_scale * linear.weight_scale.flatten()) - 1).abs().max()
    return float(scales), float((integers * deq_scale - tool).norm() / tool.norm())


float_scales, float_outputs = differences("float32")
scales, outputs = differences("bfloat16")
print("down_proj of a bfloat16 model (in brackets: of a float32 model)")
print(
    f"deq_scale against input_scale x weight_scale: up to {100 * scales:.2f} % apart ({100 * float_scales:.2g} %),"
    " expected: 0"
)
print(
    f"outputs by the files against the tool's model in float32: {100 * outputs:.2f} % apart"
    f" ({100 * float_outputs:.1g} %), expected: below 0.001 %"
)
if not (scales > 0.001 and outputs > 0.001 and float_scales < 1e-6 and float_outputs < 1e-5):
    sys.exit("Changed: deq_scale of a bfloat16 model is no longer rounded to bfloat16.")
PYTHON
# Output seen (2026-11-28, Debian 12, x86-64, Python 3.11):
# down_proj of a bfloat16 model (in brackets: of a float32 model)
# deq_scale against input_scale x weight_scale: up to 0.37 % apart (0 %), expected: 0
# outputs by the files against the tool's model in float32: 0.16 % apart (2e-05 %), expected: below 0.001 %
