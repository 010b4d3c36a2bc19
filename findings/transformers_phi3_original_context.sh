#!/usr/bin/env bash
# transformers 5.24.0: a Phi-3 configuration whose `rope_parameters` has `original_max_position_embeddings` gets 4,096
# instead, the default of the key of the same name beside the table. Longrope then changes its factors, and scales cosine
# and sine, by another context than the table says. Other classes with longrope read the table.
#
# The table is the place that transformers 5 documents for all parameters of RoPE. Met when a configuration was written
# in that form.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0
"$folder/venv/bin/python" - 2> /dev/null <<'PYTHON'
import sys

import transformers
from transformers import LlamaConfig, Phi3Config

table = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
    "original_max_position_embeddings": 512,
}
sizes = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 16384, "pad_token_id": 0}
seen = {
    each.__name__: each(**sizes, rope_parameters=dict(table)).rope_parameters["original_max_position_embeddings"]
    for each in (LlamaConfig, Phi3Config)
}
print("expected: {'LlamaConfig': 512, 'Phi3Config': 512}")
print(f"transformers {transformers.__version__}: {seen}")
if seen != {"LlamaConfig": 512, "Phi3Config": 4096}:
    sys.exit("Changed: Phi3Config reads the table in another way.")
PYTHON
# Output seen (2026-11-29, Debian 12, x86-64, Python 3.11):
# expected: {'LlamaConfig': 512, 'Phi3Config': 512}
# transformers 5.24.0: {'LlamaConfig': 512, 'Phi3Config': 4096}
