#!/usr/bin/env bash
# compressed-tensors 0.20.0 with transformers 5.24.0: a kv_cache_scheme does nothing. No attention module of a Llama
# gets it, there is no warning, and the logits are, bit for bit, those of the model without it. With transformers 5.23.0
# the same program quantizes K and V.
#
# Since transformers 5.24.0 the attention module of a Llama gets its cache as `cache`, no longer as `past_key_values`.
# compressed-tensors knows an attention module by the old name. It asks for transformers>=4.45.0, so pip installs both
# together. Met when a program that compares a model with such a scheme to the float model (as the one in
# compressed_tensors_token_is_head.sh) saw no difference at all in one of two environments.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 compressed-tensors==0.20.0 transformers==5.23.0
cat > "$folder/difference.py" <<'PYTHON'
import logging
import sys

import torch
import transformers
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, apply_quantization_config
from loguru import logger
from transformers import LlamaConfig, LlamaForCausalLM

warnings = []
handler = logging.Handler()
handler.emit = warnings.append
for name in ("transformers", "compressed_tensors"):
    logging.getLogger(name).addHandler(handler)
logger.add(warnings.append, level="WARNING")
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
with torch.no_grad():
    float_logits = model(ids).logits
    scheme = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="tensor", dynamic=True)
    apply_quantization_config(model, QuantizationConfig(config_groups={}, kv_cache_scheme=scheme))
    difference = float((model(ids).logits - float_logits).abs().max())
modules = sum(hasattr(layer.self_attn, "quantization_scheme") for layer in model.model.layers)
version = f"transformers {transformers.__version__}"
print("expected: 2 attention modules have the scheme, logits change by more than 0.1")
print(
    f"{version}: {modules} attention modules have the scheme, logits change by at most {difference:.3g},"
    f" warnings: {len(warnings)}"
)
if sys.argv[1] == "used" and not (modules == 2 and difference > 0.1):
    sys.exit(f"Changed: {version} does not use the scheme.")
if sys.argv[1] == "unused" and (modules or difference or warnings):
    sys.exit(f"Changed: {version} uses the scheme, or there is a warning.")
PYTHON
"$folder/venv/bin/python" "$folder/difference.py" used
"$folder/venv/bin/pip" install --quiet transformers==5.24.0
"$folder/venv/bin/pip" check
"$folder/venv/bin/python" "$folder/difference.py" unused
# Output seen (2026-11-28, Debian 12, x86-64, Python 3.11):
# expected: 2 attention modules have the scheme, logits change by more than 0.1
# transformers 5.23.0: 2 attention modules have the scheme, logits change by at most 3.92, warnings: 0
# No broken requirements found.
# expected: 2 attention modules have the scheme, logits change by more than 0.1
# transformers 5.24.0: 0 attention modules have the scheme, logits change by at most 0, warnings: 0
