#!/usr/bin/env bash
# compressed-tensors 0.20.0 (transformers 5.23.0): a kv_cache_scheme with strategy "token" and dynamic=True is not per
# token. The scales keep the first two dimensions, which is right for hidden states [batch, tokens, hidden]. But K and V
# are [batch, heads, tokens, head_dim], so each head gets one scale over all tokens of the call. Therefore
# - a later token changes the logits of the tokens before it: the model is no longer causal;
# - the same tokens give other logits as one prompt than one by one, where the scale is of one token.
#
# Met when logits of a checkpoint with such a scheme were compared with those of another implementation. The scales of
# hidden states were corrected before: https://github.com/vllm-project/compressed-tensors/pull/393
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 compressed-tensors==0.20.0 transformers==5.23.0
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, apply_quantization_config
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

scheme = QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="token", dynamic=True)
k = torch.randn(1, 2, 48, 16)  # batch, heads, tokens, head_dim
shape = list(compute_dynamic_scales_and_zp(k, scheme, torch.nn.Module())[0].shape)
print(f"scales of K {list(k.shape)}: {shape} (expected: 48 tokens in it, as in [1, 2, 48, 1] or [1, 1, 48, 1])")

torch.manual_seed(0)
config = LlamaConfig(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=128,
    initializer_range=0.2,
)
model = LlamaForCausalLM(config).eval()
ids = torch.randint(3, 128, (1, 48))
others = ids.repeat(128, 1)
others[:, -1] = torch.arange(128)  # the same tokens before each last token; no scale spans two rows


def differences():
    with torch.no_grad():
        whole = model(ids).logits
        before = (model(others).logits - whole)[:, :-1]
        cache = DynamicCache()
        single = [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(ids.shape[1])]
    return float(before.abs().max()), float((torch.cat(single, 1) - whole).abs().max())


float_before, float_single = differences()
apply_quantization_config(model, QuantizationConfig(config_groups={}, kv_cache_scheme=scheme))
before, single = differences()
print(f"another last token changes logits before it by at most {before:.3g} (expected: {float_before:.1g}, as float)")
print(f"prompt against token by token: {single:.3g} (expected: about {float_single:.1g}, as float)")
if not (shape == [1, 2, 1, 1] and float_before < 1e-4 and float_single < 1e-4 and before > 0.01 and single > 0.01):
    sys.exit("Changed: the scales of K and V are no longer one for each head over all tokens of the call.")
PYTHON
# Output seen (2026-11-28, Debian 12, x86-64, Python 3.11):
# scales of K [1, 2, 48, 16]: [1, 2, 1, 1] (expected: 48 tokens in it, as in [1, 2, 48, 1] or [1, 1, 48, 1])
# another last token changes logits before it by at most 0.301 (expected: 0, as float)
# prompt against token by token: 0.408 (expected: about 1e-05, as float)
