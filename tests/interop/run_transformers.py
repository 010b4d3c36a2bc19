"""Writes the logits of a directory by transformers, in float32, as logits.safetensors.

python run_transformers.py DIRECTORY OUT TOKEN…
"""

import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

directory, out, *tokens = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
with torch.inference_mode():
    logits = model(torch.tensor([[int(token) for token in tokens]])).logits[0]
save_file({"logits": logits.contiguous()}, out)
