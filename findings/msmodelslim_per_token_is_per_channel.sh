#!/usr/bin/env bash
# msmodelslim 26.1.0 (torch 2.13.0 on the CPU, transformers 5.23.0): the fake-quantized linear of W8A8_DYNAMIC, with
# int8 inputs per token and int8 weights per output channel, does not quantize inputs per token. It takes the range of
# each input channel over all tokens of the call. Its sibling for weights in groups takes the range of each token.
#
# The written weights and scales do not depend on it. But whoever evaluates the tool's own fake-quantized model measures
# another error than that of a runtime which quantizes each token: channels with outliers, which hurt such a runtime
# most, cost nothing, and each token depends on the others of the call. Met when the logits of that model were compared
# with those computed from the files.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet msmodelslim==26.1.0 transformers==5.23.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from msmodelslim.core.quantizer.base import QConfig
from msmodelslim.core.quantizer.linear import LinearQConfig, LinearQuantizer

torch.manual_seed(0)
linear = torch.nn.Linear(64, 32, bias=False)
act = QConfig(dtype="int8", scope="per_token", symmetric=True, method="minmax")
weight = QConfig(dtype="int8", scope="per_channel", symmetric=True, method="minmax")
quantizer = LinearQuantizer(LinearQConfig(act=act, weight=weight))
quantizer.setup(linear)
x = torch.randn(16, 64)  # tokens, channels
x[:, 3] *= 100  # a channel with outliers, as language models have them
quantizer(x)
fake = quantizer.deploy()


def int8(values, dim):
    scale = values.abs().amax(dim, keepdim=True) / 127
    return (values / scale).round().clamp(-128, 127) * scale


other = x.clone()
other[-1] *= 50
with torch.no_grad():
    seen, right, weights = fake(x), linear(x), int8(linear.weight, 1)
    errors = {name: (int8(x, dim) @ weights.T - seen).abs().max() for name, dim in (("token", 1), ("channel", 0))}
    per_token = (int8(x, 1) @ weights.T - right).abs().mean()
    moved = (fake(other) - seen)[0].abs().max()
print(f"tool against int8 inputs per token: at most {errors['token']:.3g} apart (expected: 0)")
print(f"tool against int8 inputs per channel over the tokens: at most {errors['channel']:.3g} apart")
print(f"mean error to the float layer: tool {(seen - right).abs().mean():.3g} (expected, per token: {per_token:.3g})")
print(f"the first token's output moves by {moved:.3g} (expected: 0) if only the last token's input changes")
if not (errors["token"] > 0.1 and errors["channel"] < 1e-4 and moved > 0.1):
    sys.exit("Changed: the fake-quantized linear of W8A8_DYNAMIC no longer scales each channel over all tokens.")
PYTHON
# Output seen (2026-11-28, Debian 12, x86-64, Python 3.11):
# tool against int8 inputs per token: at most 0.679 apart (expected: 0)
# tool against int8 inputs per channel over the tokens: at most 0 apart
# mean error to the float layer: tool 0.0336 (expected, per token: 0.0848)
# the first token's output moves by 2.4 (expected: 0) if only the last token's input changes
